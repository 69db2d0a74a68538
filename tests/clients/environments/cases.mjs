// Runs the cases of a client's script and prints one line of JSON for each: its name, and the error if it failed.

export const URL = process.env.WARMSTART_URL ?? "http://127.0.0.1:8000";
export const WITH_KEYS = process.env.WARMSTART_URL_WITH_KEYS ?? "http://127.0.0.1:8001";
export const MODEL = process.env.WARMSTART_MODEL ?? "smollm2-135m-instruct";
export const KEY = "none-needed";
export const EMBEDDER = process.env.WARMSTART_EMBEDDER ?? "all-minilm-l6-v2";
export const CORPUS = [
  "Bread rises because yeast makes gas.",
  "Bees see ultraviolet light and find flowers by it.",
  "The council raised the price of bus tickets.",
  "The river carries sand to the sea.",
];
export const QUESTION = "How do insects look for food?";
export const ANSWER = CORPUS[1];

export function assert(holds, message = "it does not hold") {
  if (!holds) throw new Error(message);
}

// Returns the error that an asynchronous function throws; fails if it throws none, or one without these members.
export async function rejects(call, members = {}) {
  let result;
  try {
    result = await call();
  } catch (error) {
    for (const [name, value] of Object.entries(members)) {
      assert(error[name] === value, `${name} is ${error[name]}: ${error}`);
    }
    return error;
  }
  throw new Error(`no error, but ${JSON.stringify(result)}`);
}

export async function collect(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}

export async function main(cases) {
  const names = process.argv.slice(2);
  for (const [name, run] of Object.entries(cases)) {
    if (names.length && !names.includes(name)) continue;
    let error = null;
    try {
      await run();
    } catch (caught) {
      error = caught.stack ?? String(caught);
    }
    console.log(JSON.stringify({ case: name, error }));
  }
  process.exit(0); // also where a client keeps a connection or a timer
}
