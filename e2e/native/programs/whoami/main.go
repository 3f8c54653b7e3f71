// Command whoami answers HTTP on :8080: / with the name of its host, which is the pod's, and /get?url=… with what
// that URL answers to this pod.
package main

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"
)

const (
	timeout  = 5 * time.Second
	mostRead = 1 << 20
)

func main() {
	name, err := os.Hostname()
	if err != nil {
		log.Fatal(err)
	}
	// A connection of its own per call: a Service picks a pod per connection.
	client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true}}
	http.HandleFunc("/{$}", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) })
	http.HandleFunc("/get", func(w http.ResponseWriter, r *http.Request) {
		answer, err := client.Get(r.URL.Query().Get("url"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		w.WriteHeader(answer.StatusCode)
		io.Copy(w, io.LimitReader(answer.Body, mostRead))
	})
	server := &http.Server{Addr: ":8080", ReadHeaderTimeout: timeout}
	log.Fatal(server.ListenAndServe())
}
