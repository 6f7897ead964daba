// Deepgram's JavaScript SDKs 3 and 4, as their documentation has users write it; only host and key are ours.
//
// Both majors have the same calls. The argument is the name that package.json gives the one to run.
"use strict";
const fs = require("node:fs");
const { Readable } = require("node:stream");
const { Inbox, Told, everything, frames, heard, say, serve, told, version } = require("./line.cjs");

const NAME = process.argv[2];
const { DeepgramApiError, LiveTTSEvents, LiveTranscriptionEvents, createClient } = require(NAME);

const RAW = { encoding: "linear16", sample_rate: 16000 };
const STREAM = { model: "nova-3", ...RAW };

function connect(task) {
  // The key `proxy` is what stands for a key in these SDKs' proxy mode, where a backend of one's own adds the real one.
  const host = task.key === "proxy" ? { proxy: { url: task.base } } : { url: task.base };
  return createClient(task.key, { global: { fetch: { options: host }, websocket: { options: host } } });
}

function failure(error) {
  if (!(error instanceof DeepgramApiError)) return undefined;
  const body = JSON.parse(error.message); // the SDK makes it a text again
  return { status: error.status, code: body.err_code, message: body.err_msg, request_id: body.request_id };
}

/** What a call gave; these SDKs hand errors back. */
function given({ result, error }) {
  if (error) throw error;
  return result;
}

/** An open stream and what comes from it. */
async function open(live, events, kinds) {
  const inbox = new Inbox();
  const opened = new Promise((resolve) => live.on(events.Open, resolve));
  const failed = new Promise((_, reject) =>
    live.on(events.Error, (event) => {
      const status = event.statusCode ?? (/Unexpected server response: (\d+)/.exec(event.message)?.[1] || null);
      const found = { error: "Error event", status: status && Number(status), message: event.message };
      found.dg_error = event.responseHeaders?.["dg-error"] ?? null;
      found.request_id = event.requestId ?? null;
      reject(new Told(found));
      inbox.fail(found);
    }),
  );
  failed.catch(() => {});
  for (const kind of [...kinds, "Unhandled"]) live.on(events[kind], (message) => inbox.put(message));
  live.on(events.Close, ({ code, reason }) =>
    code === 1000 ? inbox.end() : inbox.fail({ error: "Close event", code, message: reason }),
  );
  await Promise.race([opened, failed]);
  return [live, inbox];
}

function listen(task) {
  const live = connect(task).listen.live(STREAM);
  return open(live, LiveTranscriptionEvents, ["Transcript", "Metadata", "UtteranceEnd", "SpeechStarted"]);
}

async function httpBytes(task) {
  const file = fs.readFileSync(task.wav);
  const options = { model: "nova-3", smart_format: true };
  return heard(given(await connect(task).listen.prerecorded.transcribeFile(file, options)));
}

async function httpFile(task) {
  const file = fs.createReadStream(task.wav);
  return heard(given(await connect(task).listen.prerecorded.transcribeFile(file, { model: "nova-3" })));
}

async function httpStream(task) {
  const made = Readable.from(frames(task));
  return heard(given(await connect(task).listen.prerecorded.transcribeFile(made, { model: "nova-3" })));
}

async function httpUrl(task) {
  const source = { url: "https://audio.example/a.wav" };
  return heard(given(await connect(task).listen.prerecorded.transcribeUrl(source, { model: "nova-3" })));
}

async function speak(task) {
  const answer = await connect(task).speak.request({ text: "hello" }, { model: "aura-2-thalia-en" });
  let bytes = 0;
  for await (const piece of await answer.getStream()) bytes += piece.byteLength;
  return { bytes };
}

async function read(task) {
  const asked = connect(task).read.analyzeText({ text: "hello" }, { summarize: true, language: "en" });
  return { summary: given(await asked).results.summary.text };
}

async function models(task) {
  return { names: given(await connect(task).models.getAll()).stt.map((model) => model.name) };
}

async function stream(task) {
  const [live, inbox] = await listen(task);
  const { protocol } = live.conn;
  for (const frame of frames(task)) live.send(frame);
  live.requestClose();
  return { protocol, ...told(await everything(inbox)) };
}

async function streamKeepalive(task) {
  const [live, inbox] = await listen(task);
  for (const frame of frames(task)) {
    live.keepAlive();
    live.send(frame);
  }
  live.requestClose();
  return told(await everything(inbox));
}

async function streamFinalize(task) {
  const [live, inbox] = await listen(task);
  live.send(frames(task)[0]);
  live.finalize();
  const before = await inbox.until((message) => message.from_finalize);
  live.requestClose();
  return told([...before, ...(await everything(inbox))]);
}

async function streamConfigure(task) {
  const [live, inbox] = await listen(task);
  live.send(frames(task)[0]);
  live.send(JSON.stringify({ type: "Configure", keyterms: ["dgproxy"] }));
  const before = await inbox.until((message) => message.type === "ConfigureSuccess");
  live.requestClose();
  return told([...before, ...(await everything(inbox))]);
}

async function speakStream(task) {
  const made = connect(task).speak.live({ model: "aura-2-thalia-en", ...RAW });
  const [live, inbox] = await open(made, LiveTTSEvents, ["Metadata", "Flushed", "Warning", "Audio"]);
  live.sendText("hello");
  live.flush();
  const before = await inbox.until((message) => message.type === "Flushed");
  live.requestClose();
  return told([...before, ...(await everything(inbox))]);
}

async function refusedStream(task) {
  await listen(task);
  return {};
}

async function revokedStream(task) {
  const [live, inbox] = await listen(task);
  live.send(frames(task)[0]);
  say({ event: "open" });
  return told(await everything(inbox));
}

serve(
  {
    version: () => version(NAME),
    "http-bytes": httpBytes,
    "http-file": httpFile,
    "http-stream": httpStream,
    "http-url": httpUrl,
    speak,
    read,
    models,
    stream,
    "stream-keepalive": streamKeepalive,
    "stream-finalize": streamFinalize,
    "stream-configure": streamConfigure,
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
