// implementation 'com.deepgram:deepgram-java-sdk:0.3.0'
import com.deepgram.DeepgramClient;
import com.deepgram.core.Environment;
import com.deepgram.resources.listen.v1.media.requests.MediaTranscribeRequestOctetStream;
import com.deepgram.resources.listen.v1.media.types.MediaTranscribeRequestModel;
import com.deepgram.resources.listen.v1.types.ListenV1CloseStream;
import com.deepgram.resources.listen.v1.types.ListenV1CloseStreamType;
import com.deepgram.resources.listen.v1.websocket.V1ConnectOptions;
import com.deepgram.types.ListenV1Model;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import okio.ByteString;

class Main {
    public static void main(String[] arguments) throws Exception {
        var environment = Environment.custom()
                .base("https://speech.example.com")
                .production("wss://speech.example.com")
                .agent("wss://speech.example.com")
                .build();
        var client = DeepgramClient.builder().apiKey("dgp_YOUR_KEY").environment(environment).build();
        var audio = Files.readAllBytes(Path.of("audio.wav"));

        // a file
        var request = MediaTranscribeRequestOctetStream.builder()
                .body(audio)
                .model(MediaTranscribeRequestModel.NOVA3)
                .build();
        System.out.println(client.listen().v1().media().transcribeFile(request));

        // a stream
        var ended = new CountDownLatch(1);
        var live = client.listen().v1().v1WebSocket();
        live.onResults(result -> System.out.println(
                result.getChannel().getAlternatives().get(0).getTranscript()));
        live.onDisconnected(reason -> ended.countDown());
        live.connect(V1ConnectOptions.builder().model(ListenV1Model.NOVA3).build()).get(10, TimeUnit.SECONDS);
        live.sendMedia(ByteString.of(audio));
        live.sendCloseStream(ListenV1CloseStream.builder()
                .type(ListenV1CloseStreamType.CLOSE_STREAM)
                .build());
        ended.await(15, TimeUnit.SECONDS);
        live.disconnect();
    }
}
