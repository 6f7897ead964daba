// Deepgram's JavaScript SDK 5, as its documentation has users write it; only host and key are ours.
//
// With the argument `browser` it runs as in a page: with the native WebSocket, which takes no headers.
import fs from "node:fs";
import { Readable } from "node:stream";
import { setImmediate } from "node:timers/promises";
import line from "./line.cjs";

const { Inbox, everything, frames, heard, say, serve, told, version } = line;
const IN_BROWSER = process.argv[2] === "browser";
if (IN_BROWSER) globalThis.window = { document: {}, navigator: { userAgent: "a browser" } }; // what the SDK looks for
const { DeepgramClient, DeepgramError } = await import("deepgram-5");

const RAW = { encoding: "linear16", sample_rate: 16000 };
const STREAM = { model: "nova-3", ...RAW };
const CLOSE = { type: "CloseStream" };

function connect(task) {
  return new DeepgramClient({ apiKey: task.key ?? undefined, baseUrl: task.base });
}

function failure(error) {
  if (error instanceof DeepgramError) {
    const { statusCode, body, rawResponse } = error;
    return {
      status: statusCode ?? null,
      code: body?.err_code ?? null,
      message: body?.err_msg ?? error.message,
      request_id: rawResponse?.headers.get("dg-request-id") ?? null,
    };
  }
  if (error.type !== "error") return undefined;
  const status = /Unexpected server response: (\d+)/.exec(error.message)?.[1]; // ws says it, browsers do not
  return { error: "error event", status: status ? Number(status) : null, message: error.message ?? null };
}

/** An open stream and what comes from it. */
async function open(made) {
  const live = await made;
  const inbox = new Inbox();
  live.on("message", (message) => inbox.put(message));
  live.on("close", ({ code, reason }) =>
    code === 1000 ? inbox.end() : inbox.fail({ error: "close event", code, message: reason }),
  );
  live.connect();
  await live.waitForOpen();
  return [live, inbox];
}

function listen(task) {
  return open(connect(task).listen.v1.connect(STREAM));
}

async function transcribe(task, file, options = { model: "nova-3" }) {
  return heard(await connect(task).listen.v1.media.transcribeFile(file, options));
}

function httpBytes(task) {
  return transcribe(task, fs.readFileSync(task.wav), { model: "nova-3", smart_format: true });
}

function httpFile(task) {
  return transcribe(task, IN_BROWSER ? new File([fs.readFileSync(task.wav)], "tone.wav") : { path: task.wav });
}

function httpReadStream(task) {
  return transcribe(task, fs.createReadStream(task.wav));
}

function httpStream(task) {
  const made = Readable.from(frames(task));
  return transcribe(task, IN_BROWSER ? Readable.toWeb(made) : made);
}

async function httpUrl(task) {
  const asked = { url: "https://audio.example/a.wav", model: "nova-3" };
  return heard(await connect(task).listen.v1.media.transcribeUrl(asked));
}

async function speak(task) {
  const answer = await connect(task).speak.v1.audio.generate({ text: "hello", model: "aura-2-thalia-en" });
  let bytes = 0;
  for await (const piece of answer.stream()) bytes += piece.byteLength;
  return { bytes };
}

async function read(task) {
  const asked = { body: { text: "hello" }, summarize: true, language: "en" };
  return { summary: (await connect(task).read.v1.text.analyze(asked)).results.summary.text };
}

async function models(task) {
  return { names: (await connect(task).manage.v1.models.list()).stt.map((model) => model.name) };
}

async function stream(task) {
  const [live, inbox] = await listen(task);
  const { protocol } = live.socket;
  for (const frame of frames(task)) live.sendMedia(frame);
  live.sendCloseStream(CLOSE);
  return { protocol, ...told(await everything(inbox)) };
}

async function streamKeepalive(task) {
  const [live, inbox] = await listen(task);
  for (const frame of frames(task)) {
    live.sendKeepAlive({ type: "KeepAlive" });
    live.sendMedia(frame);
  }
  live.sendCloseStream(CLOSE);
  return told(await everything(inbox));
}

async function streamFinalize(task) {
  const [live, inbox] = await listen(task);
  live.sendMedia(frames(task)[0]);
  live.sendFinalize({ type: "Finalize" });
  const before = await inbox.until((message) => message.from_finalize);
  live.sendCloseStream(CLOSE);
  return told([...before, ...(await everything(inbox))]);
}

async function streamConfigure(task) {
  const [live, inbox] = await listen(task);
  live.sendMedia(frames(task)[0]);
  live.socket.send(JSON.stringify({ type: "Configure", keyterms: ["dgproxy"] }));
  const before = await inbox.until((message) => message.type === "ConfigureSuccess");
  live.sendCloseStream(CLOSE);
  return told([...before, ...(await everything(inbox))]);
}

async function flux(task) {
  const [live, inbox] = await open(connect(task).listen.v2.connect({ model: "flux-general-en", ...RAW }));
  for (const frame of frames(task)) live.sendMedia(frame);
  live.sendCloseStream(CLOSE);
  return told(await everything(inbox));
}

async function speakStream(task) {
  const [live, inbox] = await open(connect(task).speak.v1.connect({ model: "aura-2-thalia-en", ...RAW }));
  live.sendText({ type: "Speak", text: "hello" });
  live.sendFlush({ type: "Flush" });
  const before = await inbox.until((message) => message.type === "Flushed");
  live.sendClose({ type: "Close" });
  return told([...before, ...(await everything(inbox))]);
}

async function refusedStream(task) {
  await listen(task);
  return {};
}

/** What a stream saw that ended otherwise than well: the SDK then connects again by itself, until it gives up. */
async function revokedStream(task) {
  const live = await connect(task).listen.v1.connect(STREAM);
  const closes = [];
  live.on("close", ({ code, reason }) => closes.push([code, reason]));
  live.connect();
  await live.waitForOpen();
  live.sendMedia(frames(task)[0]);
  say({ event: "open" });
  const error = await new Promise((resolve) => live.on("error", resolve));
  await setImmediate();
  const timers = process.getActiveResourcesInfo().filter((resource) => resource === "Timeout").length;
  return { closes, error: error.message ?? null, retries: live.socket.retryCount, timers };
}

serve(
  {
    version: () => version("deepgram-5"),
    "http-bytes": httpBytes,
    "http-file": httpFile,
    "http-read-stream": httpReadStream,
    "http-stream": httpStream,
    "http-url": httpUrl,
    speak,
    read,
    models,
    stream,
    "stream-keepalive": streamKeepalive,
    "stream-finalize": streamFinalize,
    "stream-configure": streamConfigure,
    flux,
    "speak-stream": speakStream,
    "wrong-key": httpBytes,
    "no-key": httpBytes,
    "jwt-key": httpBytes,
    "proxy-key": httpBytes,
    "wrong-key-stream": refusedStream,
    "revoked-stream": revokedStream,
  },
  failure,
);
