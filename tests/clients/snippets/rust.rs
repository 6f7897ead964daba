// cargo add deepgram futures; cargo add tokio --features full
use deepgram::common::{
    audio_source::AudioSource,
    options::{Model, Options},
    stream_response::StreamResponse,
};
use deepgram::{Deepgram, DeepgramError};
use futures::StreamExt;
use std::time::Duration;

#[tokio::main]
async fn main() -> Result<(), DeepgramError> {
    let client = Deepgram::with_base_url_and_api_key("https://speech.example.com", "dgp_YOUR_KEY")?;
    let options = Options::builder().model(Model::Nova3).build();

    // a file
    let file = tokio::fs::File::open("audio.wav").await?;
    let source = AudioSource::from_buffer_with_mime_type(file, "audio/wav");
    let heard = client.transcription().prerecorded(source, &options).await?;
    println!("{}", heard.results.channels[0].alternatives[0].transcript);

    // a stream: 8192 bytes each 10 ms
    let transcription = client.transcription();
    let live = transcription.stream_request_with_options(options);
    let mut results = live.file("audio.wav", 8192, Duration::from_millis(10)).await?;
    while let Some(result) = results.next().await {
        if let StreamResponse::TranscriptResponse { channel, .. } = result? {
            println!("{}", channel.alternatives[0].transcript);
        }
    }
    Ok(())
}
