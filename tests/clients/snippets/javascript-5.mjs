// npm install @deepgram/sdk@5
// a private CA only: export NODE_EXTRA_CA_CERTS=ca.pem
import fs from "node:fs";
import { DeepgramClient } from "@deepgram/sdk";

const client = new DeepgramClient({ apiKey: "dgp_YOUR_KEY", baseUrl: "https://speech.example.com" });

// a file
const heard = await client.listen.v1.media.transcribeFile({ path: "audio.wav" }, { model: "nova-3" });
console.log(heard.results.channels[0].alternatives[0].transcript);

// a stream
const live = await client.listen.v1.connect({ model: "nova-3" });
live.on("message", (message) => {
  if (message.type === "Results") console.log(message.channel.alternatives[0].transcript);
});
live.on("error", (error) => console.error(error.message));
live.connect();
await live.waitForOpen();
for await (const chunk of fs.createReadStream("audio.wav", { highWaterMark: 8192 })) live.sendMedia(chunk);
live.sendCloseStream({ type: "CloseStream" });
