// dotnet add package Deepgram
using Deepgram;
using Deepgram.Models.Authenticate.v1;
using Deepgram.Models.Listen.v1.REST;
using Deepgram.Models.Listen.v2.WebSocket;

var key = "dgp_YOUR_KEY";
var host = "speech.example.com";
var audio = File.ReadAllBytes("audio.wav");

// a file
var client = ClientFactory.CreateListenRESTClient(key, new DeepgramHttpClientOptions(key, host));
var heard = await client.TranscribeFile(audio, new PreRecordedSchema { Model = "nova-3" });
Console.WriteLine(heard.Results!.Channels![0].Alternatives![0].Transcript);

// a stream
var live = ClientFactory.CreateListenWebSocketClient(key, new DeepgramWsClientOptions(key, host));
await live.Subscribe(new EventHandler<ResultResponse>((_, result) =>
    Console.WriteLine(result.Channel!.Alternatives![0].Transcript)));
if (!await live.Connect(new LiveSchema { Model = "nova-3" })) throw new Exception("no stream");
live.Send(audio);
await live.SendFinalize();
await Task.Delay(2000); // for the last results
await live.Stop();
