// Server-sent events from a fetch (HTML Living Standard section 9.2.6), which EventSource cannot POST for.

/**
 * A parser that is fed text as it comes.
 * @returns {(text: string) => string[]} takes the next piece, gives the data of the events that it completes
 */
export function parser() {
  let rest = "";
  let data = [];
  return (text) => {
    const complete = [];
    rest += text;
    let start = 0;
    // A carriage return at the end may be half of a CRLF: the next piece tells.
    for (const end of rest.matchAll(/\r\n|\n|\r(?!$)/g)) {
      const line = rest.slice(start, end.index);
      start = end.index + end[0].length;
      if (line === "") {
        if (data.length) complete.push(data.join("\n"));
        data = [];
      } else if (line === "data" || line.startsWith("data:")) {
        data.push(line.slice(5).replace(/^ /, ""));
      } // comments and other fields mean nothing here
    }
    rest = rest.slice(start);
    return complete;
  };
}

/**
 * The data of each event of a stream. What an event lacks at the end is not an event (section 9.2.6).
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder(); // drops a byte order mark, joins characters that were cut in two
  const feed = parser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* feed(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading ends the request
  }
}
