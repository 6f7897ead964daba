// The other end of tests/clients/driver.py: reads what to do, a line each, and says what was seen.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const readline = require("node:readline");

const FRAME = 3200; // bytes: 100 ms of linear16 at 16 kHz

console.log = console.info = console.debug = console.error; // whatever an SDK prints

/** What an SDK told its user by an event, or in an answer, in place of throwing it. */
class Told extends Error {
  constructor(found) {
    super(found.message);
    this.found = found;
  }
}

/** What came from a stream: read one at a time, to its end. */
class Inbox {
  #queue = [];
  #wake = () => {};

  put(message) {
    this.#queue.push({ value: message, done: false });
    this.#wake();
  }

  end() {
    this.#queue.push({ done: true });
    this.#wake();
  }

  fail(found) {
    this.#queue.push({ error: new Told(found) });
    this.#wake();
  }

  async next() {
    while (this.#queue.length === 0) await new Promise((wake) => (this.#wake = wake));
    const { error, ...step } = this.#queue.shift();
    if (error) throw error;
    return step;
  }

  /** All up to and with the first that is wanted. */
  async until(wanted) {
    const messages = [];
    do messages.push((await this.next()).value);
    while (!wanted(messages.at(-1)));
    return messages;
  }

  [Symbol.asyncIterator]() {
    return this;
  }
}

/** One line to whoever drives us. */
function say(message) {
  fs.writeSync(1, JSON.stringify(message) + "\n");
}

/** The bare samples, as a microphone gives them. */
function frames(task) {
  const samples = fs.readFileSync(task.pcm);
  const count = Math.ceil(samples.length / FRAME);
  return Array.from({ length: count }, (_, at) => samples.subarray(at * FRAME, (at + 1) * FRAME));
}

/** The version of an SDK by the name that package.json gives it. */
function version(name) {
  const file = path.join(__dirname, "node_modules", name, "package.json");
  return { version: JSON.parse(fs.readFileSync(file)).version };
}

function heard(answer) {
  return {
    sha256: answer.metadata.sha256,
    duration: answer.metadata.duration,
    request_id: answer.metadata.request_id,
    transcript: answer.results.channels[0].alternatives[0].transcript,
  };
}

const size = (message) => message.byteLength ?? message.size; // Buffer, Blob; undefined of anything else

/** Of a stream that ended well. */
function told(messages) {
  const binary = messages.filter((message) => size(message) !== undefined);
  return {
    kinds: messages.map((message) => (size(message) === undefined ? message.type : "binary")),
    bytes: binary.reduce((sum, message) => sum + size(message), 0),
    finalized: messages.some((message) => message.from_finalize),
    keyterms: messages.find((message) => message.type === "ConfigureSuccess")?.keyterms ?? null,
    sequence: messages.map((message) => message.sequence_id ?? null),
    duration: messages.at(-1)?.duration ?? null,
  };
}

async function everything(inbox) {
  const messages = [];
  for await (const message of inbox) messages.push(message);
  return messages;
}

/** Does what it is told until the input ends. `failure` tells the SDK's own errors. */
async function serve(works, failure) {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { do: feature, ...task } = JSON.parse(line);
    try {
      say({ ok: true, saw: await works[feature](task) });
    } catch (error) {
      const found = error instanceof Told ? error.found : failure(error) ?? { message: error.message };
      if (!(error instanceof Told)) console.error(error);
      say({ ok: false, error: error.constructor.name, status: null, code: null, message: null, ...found });
    }
  }
  process.exit(0); // whatever an SDK still has open
}

module.exports = { Inbox, Told, everything, frames, heard, say, serve, told, version };
