/** Writes Go types for a schema: node generate_go.mjs SCHEMA OUTPUT */

import { readFileSync, writeFileSync } from "node:fs";
import { FetchingJSONSchemaStore, InputData, JSONSchemaInput, quicktype } from "quicktype-core";

const [schema, output] = process.argv.slice(2);
const source = new JSONSchemaInput(new FetchingJSONSchemaStore());
await source.addSource({ name: "Envelope", schema: readFileSync(schema, "utf8") });
const inputData = new InputData();
inputData.addInput(source);
const { lines } = await quicktype({ inputData, lang: "go", rendererOptions: { package: "main" } });
writeFileSync(output, lines.join("\n"));
