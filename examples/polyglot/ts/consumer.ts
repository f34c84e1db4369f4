/** Handles the golden messages, as a test of a consumer: node dist/ts/consumer.js [FIXTURES] */

import { readFileSync } from "node:fs";
import type { Card, Invoice, PolyglotOrderPlaced10 } from "../generated/order_placed.js";
import { compile, describe } from "./contract.js";

const stem = "schemas/polyglot.order_placed/1.0";
const validate = compile<PolyglotOrderPlaced10>(`${stem}.reader.json`);

function pay(payment: Card | Invoice): string {
  // The compiler knows the fields of each member after the comparison.
  return payment.kind === "card" ? `card ${payment.last_digits}` : `invoice, ${payment.days} days`;
}

interface Fixture {
  name: string;
  message: unknown;
}

const fixtures: Fixture[] = JSON.parse(readFileSync(process.argv[2] ?? `${stem}.fixtures.json`, "utf8"));
let failures = 0;
for (const { name, message } of fixtures) {
  if (validate(message)) {
    console.log(`${name}: ${message.data.total} by ${pay(message.data.payment)}`);
  } else {
    failures += 1;
    console.log(`${name}: REFUSED: ${describe(validate)}`);
  }
}
process.exit(failures ? 1 : 0);
