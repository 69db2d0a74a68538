// A request as code that runs as it is, anywhere: pure functions.

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * A request for a shell.
 * @param {string} url
 * @param {object} body
 * @param {boolean} key whether a key is sent; it is read from the environment and never written out
 */
export function curl(url, body, key) {
  return [
    `curl -sN ${quoted(url)}`,
    `-H 'content-type: application/json'`,
    ...(key ? ['-H "authorization: Bearer $API_KEY"'] : []),
    `-d ${quoted(JSON.stringify(body, null, 2))}`,
  ].join(" \\\n  ");
}

/** A JSON value as Python writes it. @param {any} value @param {string} [indent] */
export function literal(value, indent = "") {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (typeof value !== "object") return JSON.stringify(value); // JSON's numbers and texts are Python's
  const deeper = `${indent}    `;
  const list = Array.isArray(value);
  const items = list
    ? value.map((item) => literal(item, deeper))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, deeper)}`);
  if (!items.length) return list ? "[]" : "{}";
  const [open, close] = list ? "[]" : "{}";
  return `${open}\n${items.map((item) => `${deeper}${item},\n`).join("")}${indent}${close}`;
}

const PRINT = {
  chat: `for choice in event["choices"]:
                print(choice["delta"].get("content", ""), end="", flush=True)`,
  complete: `print(event.get("text", ""), end="", flush=True)`,
  compare: `if "answer" in event:
                print(json.dumps(event["answer"], indent=2))
            elif "answers" in event:
                print(json.dumps([answer["mean_logprobs"] for answer in event["answers"]]))`,
};

const streamed = (print) => `for line in answer:
        if line.startswith(b"data: {"):
            event = json.loads(line[6:])
            ${print}
print()`;
const WHOLE = `for entry in json.load(answer)["data"]:
        print(entry["index"], entry["embedding"][:4], "...")`;

/**
 * A request for Python's standard library; all but embeddings are streamed.
 * @param {"chat"|"complete"|"compare"|"embed"} kind
 * @param {string} url
 * @param {object} body
 * @param {boolean} key see `curl`
 */
export function python(kind, url, body, key) {
  return `import json
${key ? "import os\n" : ""}import urllib.request

request = urllib.request.Request(
    ${JSON.stringify(url)},
    data=json.dumps(${literal(body, "    ")}).encode(),
    headers={"content-type": "application/json"${key ? ', "authorization": "Bearer " + os.environ["API_KEY"]' : ""}},
)
with urllib.request.urlopen(request) as answer:
    ${kind in PRINT ? streamed(PRINT[kind]) : WHOLE}
`;
}
