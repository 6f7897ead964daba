// A file over HTTPS with the official SDK: only its host and its key are set.
//
// npm install @deepgram/sdk@5
// NODE_EXTRA_CA_CERTS=ca.pem DEEPGRAM_API_KEY=KEY node listen.mjs https://HOST:PORT FILE.wav

import { readFileSync } from "node:fs";
import { DeepgramClient } from "@deepgram/sdk";

const [url, path] = process.argv.slice(2);
const client = new DeepgramClient({ baseUrl: url, apiKey: process.env.DEEPGRAM_API_KEY });
const heard = await client.listen.v1.media.transcribeFile(readFileSync(path), { model: "nova-3" });
console.log(heard.results.channels[0].alternatives[0].transcript);
