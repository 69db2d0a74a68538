// What a request may say, read from the service's own description. Ranges, defaults and help are written there only.

import { json } from "./api.js";

/**
 * A field of a request.
 * @typedef {object} Field
 * @property {string} name
 * @property {"number"|"integer"|"boolean"|"text"|"texts"|"map"|"object"|"list"|"unsupported"} kind
 * @property {boolean} optional whether it may be left empty
 * @property {any} default
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {number} [above] the minimum, itself not included
 * @property {string} help
 */

let description;

/** The OpenAPI document; asked for once. @returns {Promise<any>} */
export function openapi() {
  description ??= json("GET", "openapi.json").catch((error) => {
    description = undefined;
    throw error;
  });
  return description;
}

const resolve = (document, schema) =>
  schema.$ref ? schema.$ref.split("/").slice(1).reduce((node, key) => node[key], document) : schema;

/**
 * The fields of a POST route.
 * @param {string} path
 * @param {string} [inside] a field that is a list of objects: the fields of these
 * @returns {Promise<Field[]>}
 */
export async function fields(path, inside) {
  const document = await openapi();
  let schema = resolve(document, document.paths[path].post.requestBody.content["application/json"].schema);
  if (inside) schema = resolve(document, schema.properties[inside].items);
  return Object.entries(schema.properties).map(([name, property]) => field(name, property));
}

/** A field from its JSON schema. @param {string} name @param {any} property @returns {Field} */
export function field(name, property) {
  const kinds = (property.anyOf ?? [property]).filter((kind) => kind.type !== "null");
  const [first] = kinds;
  return {
    name,
    kind: property.enum ? "unsupported" : kindOf(kinds),
    optional: (property.default ?? null) === null,
    default: property.default ?? null,
    minimum: first.minimum,
    maximum: first.maximum,
    above: first.exclusiveMinimum,
    help: property.description ?? "",
  };
}

function kindOf(kinds) {
  const types = kinds.map((kind) => kind.type);
  if (types.includes("string")) return types.includes("array") ? "texts" : "text";
  if (types[0] === "array") return "list";
  if (types[0] === "object") return kinds[0].additionalProperties ? "map" : "object";
  return types[0] ?? "object";
}

// What the page decides itself, or shows in another way; all else that a request takes is a control.
const OURS = new Set([
  ...["model", "prompt", "messages", "variants", "label", "score", "stream", "stream_options", "n", "num_return_sequences"],
  ...["logprobs", "top_logprobs", "user", "echo", "max_completion_tokens", "max_length", "cache_control"],
  ...["metadata", "safety_identifier", "prompt_cache_key"],
]);

/** Whether a field is a sampling control. @param {Field} field */
export const isControl = (field) => field.kind !== "unsupported" && !OURS.has(field.name);
