export SSL_CERT_FILE=ca.pem   # a private CA only; or: curl --cacert ca.pem
key='dgp_YOUR_KEY'

curl --fail-with-body 'https://speech.example.com/v1/listen?model=nova-3' \
  -H "Authorization: Token $key" -H 'Content-Type: audio/wav' --data-binary @audio.wav

# without a known length, as it comes: chunked
cat audio.wav | curl --fail-with-body 'https://speech.example.com/v1/listen?model=nova-3' \
  -H "Authorization: Token $key" -H 'Content-Type: audio/wav' -H 'Transfer-Encoding: chunked' -T -  -X POST
