// npm install @deepgram/sdk@4
// a private CA only: export NODE_EXTRA_CA_CERTS=ca.pem
import fs from "node:fs";
import { createClient, LiveTranscriptionEvents } from "@deepgram/sdk";

const options = { url: "https://speech.example.com" };
const client = createClient("dgp_YOUR_KEY", { global: { fetch: { options }, websocket: { options } } });

// a file
const file = fs.createReadStream("audio.wav");
const { result, error } = await client.listen.prerecorded.transcribeFile(file, { model: "nova-3" });
if (error) throw error;
console.log(result.results.channels[0].alternatives[0].transcript);

// a stream
const live = client.listen.live({ model: "nova-3" });
live.on(LiveTranscriptionEvents.Transcript, (message) => console.log(message.channel.alternatives[0].transcript));
live.on(LiveTranscriptionEvents.Error, (error) => console.error(error.message));
live.on(LiveTranscriptionEvents.Open, async () => {
  for await (const chunk of fs.createReadStream("audio.wav", { highWaterMark: 8192 })) live.send(chunk);
  live.requestClose();
});
