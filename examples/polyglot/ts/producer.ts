/** Publishes one event: node dist/ts/producer.js */

import { randomUUID } from "node:crypto";
import { PublishCommand, SNSClient } from "@aws-sdk/client-sns";
import type { PolyglotOrderPlaced10 } from "../generated/order_placed.js";
import { compile, describe } from "./contract.js";

const event: PolyglotOrderPlaced10 = {
  specversion: "1.0",
  type: "polyglot.order_placed",
  dataversion: "1.0",
  source: "web-shop",
  id: randomUUID(),
  time: new Date().toISOString(),
  data: {
    order_id: randomUUID(),
    placed_at: new Date().toISOString(),
    total: "42.00",
    items: [{ sku: "SKU-1", quantity: 2 }],
    payment: { kind: "card", last_digits: "4242" },
  },
};

const validate = compile<PolyglotOrderPlaced10>("schemas/polyglot.order_placed/1.0.reader.json");
if (!validate(event)) {
  throw new Error(`the event does not fit its contract: ${describe(validate)}`);
}
await new SNSClient({}).send(
  new PublishCommand({
    TopicArn: process.env.ORDERS_TOPIC_ARN,
    Message: JSON.stringify(event),
    MessageAttributes: { type: { DataType: "String", StringValue: event.type } },
  }),
);
console.log(`published ${event.id}`);
