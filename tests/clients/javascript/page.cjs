// A page's scripts without the page: what of a document they use, and a file that somebody chose.
"use strict";
const fs = require("node:fs");
const path = require("node:path");
const vm = require("node:vm");

const [page, audio] = process.argv.slice(2);
const SDK = path.join(__dirname, "node_modules", "deepgram-5", "dist", "browser", "index.global.js");
const print = (text) => fs.writeSync(1, text);

let text = "";
const heard = {
  get textContent() {
    return text;
  },
  set textContent(value) {
    print(value.slice(text.length));
    text = value;
  },
};
const elements = { heard, file: {} };

globalThis.document = { getElementById: (id) => elements[id] };
globalThis.window = globalThis;
vm.runInThisContext(fs.readFileSync(SDK, "utf-8"));
for (const [, script] of fs.readFileSync(page, "utf-8").matchAll(/<script>(.*?)<\/script>/gs)) vm.runInThisContext(script);
elements.file.onchange({ target: { files: [new File([fs.readFileSync(audio)], "audio.wav")] } });
