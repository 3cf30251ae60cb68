// The load for servers that keep events: a daemon of gemba over its HTTP API, and NATS JetStream. interop/log-beside starts the servers and this program.
//
//	load -of gemba|nats -at URL [-token T] -do TASK [-stream NAME] [-seconds S | -events N]
//
// Tasks: one (1 event in flight), many (1,024 in flight), batch (nats: atomic batches of 1,000), connections (gemba: 256 connections with an event
// each), replay (from the start to the end of -events), export (gemba: the same as a file), payloads (prints -events events, a line each).
// Prints one JSON object: how many events, in how many seconds.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

const (
	eventBytes = 200
	inFlight   = 1024
	// Appended before the clock starts: with them streams and connections come to be.
	warmUp = 64
)

// task is what is to be done, and for how long: seconds, or a number of events.
type task struct {
	at, token, stream string
	seconds           float64
	events            int
}

// goesOn tells whether one more event is to be sent.
func (t task) goesOn(sent int, start time.Time) bool {
	if t.events > 0 {
		return sent < t.events
	}
	return time.Since(start).Seconds() < t.seconds
}

// result is how many events were acknowledged, or read, in which time, and what else is to be told.
type result struct {
	events int
	took   time.Duration
	bytes  int
}

func main() {
	var t task
	of := flag.String("of", "", "gemba or nats")
	do := flag.String("do", "", "the task")
	flag.StringVar(&t.at, "at", "", "where the server listens")
	flag.StringVar(&t.token, "token", "", "what gemba wants to see")
	flag.StringVar(&t.stream, "stream", "events", "the stream's name")
	flag.Float64Var(&t.seconds, "seconds", 4, "for how long")
	flag.IntVar(&t.events, "events", 0, "how many events, in place of -seconds")
	flag.Parse()
	if *do == "payloads" {
		out := bufio.NewWriter(os.Stdout)
		for i := range t.events {
			out.Write(append(event(i), '\n'))
		}
		fail(out.Flush())
		return
	}
	tasks := map[string]func(task) (result, error){
		"gemba one": gembaOne, "gemba many": gembaMany, "gemba connections": gembaConnections, "gemba replay": gembaReplay, "gemba export": gembaExport,
		"nats one": natsOne, "nats many": natsMany, "nats batch": natsBatch, "nats replay": natsReplay,
	}
	run, known := tasks[*of+" "+*do]
	if !known || flag.NArg() > 0 {
		fail(errors.New("no such task; the comment in main.go has them all"))
	}
	done, err := run(t)
	fail(err)
	seconds := done.took.Seconds()
	fail(json.NewEncoder(os.Stdout).Encode(map[string]any{
		"events": done.events, "seconds": seconds, "per_s": float64(done.events) / seconds, "bytes": done.bytes,
	}))
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

// event is the one of crates/log/examples/appends.rs: half of it a text that repeats, half of it noise.
func event(i int) []byte {
	payload := fmt.Appendf(make([]byte, 0, eventBytes+1),
		`{"line":"hamburg-1","machine":"press-%02d","count":%d,"state":"running","id":"`, i%40, i)
	noise := uint64(i)*0x9e3779b97f4a7c15 | 1
	for len(payload) < eventBytes-2 {
		noise ^= noise << 13
		noise ^= noise >> 7
		noise ^= noise << 17
		payload = append(payload, 'a'+byte(noise%26))
	}
	return append(payload, '"', '}')
}

// oneByOne sends events and waits for each.
func oneByOne(t task, send func(payload []byte) error) (result, error) {
	for i := range warmUp {
		if err := send(event(i)); err != nil {
			return result{}, err
		}
	}
	start, sent := time.Now(), 0
	for t.goesOn(sent, start) {
		if err := send(event(warmUp + sent)); err != nil {
			return result{}, err
		}
		sent++
	}
	return result{events: sent, took: time.Since(start)}, nil
}

// whole checks what was read: as many events as there are, each with all of its bytes.
func whole(t task, events, bytes int, took time.Duration) (result, error) {
	if events != t.events || bytes != events*eventBytes {
		return result{}, fmt.Errorf("%d events with %d bytes were read, %d were to come", events, bytes, t.events)
	}
	return result{events: events, took: took, bytes: bytes}, nil
}
