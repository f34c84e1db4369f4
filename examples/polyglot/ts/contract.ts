/** Validates events by their exported schemas, with Ajv in its strict mode. */

import { readFileSync } from "node:fs";
import { Ajv2020, type ValidateFunction } from "ajv/dist/2020.js";
import addFormats from "ajv-formats";

/** Formats that Pydantic writes and JSON Schema does not define. Ajv's strict mode refuses formats that it does not know. */
const FORMATS_OF_PYDANTIC = [
  ...["uuid1", "uuid3", "uuid4", "uuid5", "uuid6", "uuid7", "uuid8", "path", "file-path", "directory-path", "base64"],
  ...["base64url", "name-email", "multi-host-uri", "ipvanyaddress", "ipvanynetwork", "ipvanyinterface", "ipv4network"],
  ...["ipv4interface", "ipv6network", "ipv6interface", "color", "json-string"],
];

/** Return a validator for events of type T. Use a reader's schema: it accepts the fields that newer versions add. */
export function compile<T>(path: string): ValidateFunction<T> {
  const ajv = new Ajv2020({ strict: true, allErrors: true });
  addFormats.default(ajv);
  for (const name of FORMATS_OF_PYDANTIC) {
    ajv.addFormat(name, true);
  }
  return ajv.compile<T>(JSON.parse(readFileSync(path, "utf8")));
}

/** Return the errors of the last call, as text. */
export function describe<T>(validate: ValidateFunction<T>): string {
  return (validate.errors ?? []).map((one) => `${one.instancePath || "/"} ${one.message}`).join("; ");
}
