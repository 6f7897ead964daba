# --cacert: a private CA only

# a file
curl --cacert ca.pem --fail-with-body 'https://speech.example.com/v1/listen?model=nova-3' \
  -H 'Authorization: Token dgp_YOUR_KEY' -H 'Content-Type: audio/wav' --data-binary @audio.wav

# what another program writes, as it comes: chunked
cat audio.wav | curl --cacert ca.pem --fail-with-body 'https://speech.example.com/v1/listen?model=nova-3' \
  -H 'Authorization: Token dgp_YOUR_KEY' -H 'Content-Type: audio/wav' -X POST -T -
