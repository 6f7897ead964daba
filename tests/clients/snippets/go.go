// go get github.com/deepgram/deepgram-go-sdk/v3
// a private CA only: export SSL_CERT_FILE=ca.pem
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	rest "github.com/deepgram/deepgram-go-sdk/v3/pkg/api/listen/v1/rest"
	ws "github.com/deepgram/deepgram-go-sdk/v3/pkg/api/listen/v1/websocket"
	message "github.com/deepgram/deepgram-go-sdk/v3/pkg/api/listen/v1/websocket/interfaces"
	"github.com/deepgram/deepgram-go-sdk/v3/pkg/client/interfaces"
	"github.com/deepgram/deepgram-go-sdk/v3/pkg/client/listen"
)

type printer struct{ *ws.DefaultCallbackHandler }

func (printer) Message(heard *message.MessageResponse) error {
	fmt.Println(heard.Channel.Alternatives[0].Transcript)
	return nil
}

func main() {
	ctx := context.Background()
	key, options := "dgp_YOUR_KEY", &interfaces.ClientOptions{Host: "speech.example.com"} // no scheme

	// a file
	client := rest.New(listen.NewREST(key, options))
	heard, err := client.FromFile(ctx, "audio.wav", &interfaces.PreRecordedTranscriptionOptions{Model: "nova-3"})
	if err != nil {
		panic(err)
	}
	fmt.Println(heard.Results.Channels[0].Alternatives[0].Transcript)

	// a stream
	wanted := &interfaces.LiveTranscriptionOptions{Model: "nova-3"}
	live, err := listen.NewWSUsingCallback(ctx, key, options, wanted, printer{ws.NewDefaultCallbackHandler()})
	if err != nil || !live.Connect() {
		panic("no stream")
	}
	audio, err := os.Open("audio.wav")
	if err != nil {
		panic(err)
	}
	live.Stream(audio)
	live.Finalize()
	time.Sleep(2 * time.Second) // for the last results
	live.Stop()
}
