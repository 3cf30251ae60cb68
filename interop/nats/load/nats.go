package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The most that the server takes in one atomic batch.
const atomicBatch = 1000

// jet connects, and makes the stream if it is not there: in files, one replica, all else as by default.
func (t task) jet() (*nats.Conn, jetstream.JetStream, error) {
	connection, err := nats.Connect(t.at, nats.RetryOnFailedConnect(true), nats.ReconnectWait(100*time.Millisecond))
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(connection, jetstream.WithPublishAsyncMaxPending(inFlight))
	if err != nil {
		return nil, nil, err
	}
	ending, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	_, err = js.CreateOrUpdateStream(ending, jetstream.StreamConfig{
		Name: t.stream, Subjects: []string{t.stream}, Storage: jetstream.FileStorage, AllowAtomicPublish: true,
	})
	return connection, js, err
}

func natsOne(t task) (result, error) {
	connection, js, err := t.jet()
	if err != nil {
		return result{}, err
	}
	defer connection.Close()
	return oneByOne(t, func(payload []byte) error {
		_, err := js.Publish(context.Background(), t.stream, payload)
		return err
	})
}

// natsMany publishes without waiting, as long as fewer than 1,024 are unanswered.
func natsMany(t task) (result, error) {
	connection, _, err := t.jet()
	if err != nil {
		return result{}, err
	}
	defer connection.Close()
	var failed atomic.Int64
	js, err := jetstream.New(connection, jetstream.WithPublishAsyncMaxPending(inFlight),
		jetstream.WithPublishAsyncErrHandler(func(jetstream.JetStream, *nats.Msg, error) { failed.Add(1) }))
	if err != nil {
		return result{}, err
	}
	start, sent := time.Now(), 0
	for t.goesOn(sent, start) {
		if _, err := js.PublishAsync(t.stream, event(sent), jetstream.WithStallWait(10*time.Second)); err != nil {
			return result{}, err
		}
		sent++
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(30 * time.Second):
		return result{}, errors.New("acknowledgements are missing")
	}
	took := time.Since(start)
	if failed.Load() > 0 {
		return result{}, fmt.Errorf("%d events were refused", failed.Load())
	}
	return result{events: sent, took: took}, nil
}

// natsBatch publishes atomic batches, one after the other, by the headers that the server knows since 2.12: the client has no call for it.
func natsBatch(t task) (result, error) {
	connection, _, err := t.jet()
	if err != nil {
		return result{}, err
	}
	defer connection.Close()
	start, sent := time.Now(), 0
	for t.goesOn(sent, start) {
		id := strconv.Itoa(sent)
		for n := 1; n <= atomicBatch; n++ {
			message := nats.NewMsg(t.stream)
			message.Data = event(sent)
			message.Header.Set("Nats-Batch-Id", id)
			message.Header.Set("Nats-Batch-Sequence", strconv.Itoa(n))
			sent++
			if n < atomicBatch {
				if err := connection.PublishMsg(message); err != nil {
					return result{}, err
				}
				continue
			}
			message.Header.Set("Nats-Batch-Commit", "1")
			answer, err := connection.RequestMsg(message, 10*time.Second)
			if err != nil {
				return result{}, err
			}
			if want := fmt.Sprintf(`"count":%d`, atomicBatch); !bytes.Contains(answer.Data, []byte(want)) {
				return result{}, fmt.Errorf("the batch was refused: %s", answer.Data)
			}
		}
	}
	return result{events: sent, took: time.Since(start)}, nil
}

// natsReplay reads the stream from its start, by the consumer that -stream names behind a colon: the newer one, which asks for portions, or the older
// one, which is sent all.
func natsReplay(t task) (result, error) {
	kind := ""
	t.stream, kind, _ = strings.Cut(t.stream, ":")
	connection, js, err := t.jet()
	if err != nil {
		return result{}, err
	}
	defer connection.Close()
	done := make(chan struct{})
	count, sum := 0, 0
	take := func(payload []byte) {
		sum += len(payload)
		if count++; count == t.events {
			close(done)
		}
	}
	start := time.Now()
	handler := func(message jetstream.Msg) { take(message.Data()) }
	switch kind {
	case "pull":
		consumer, err := js.CreateConsumer(context.Background(), t.stream, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
		if err != nil {
			return result{}, err
		}
		if _, err := consumer.Consume(handler, jetstream.PullMaxMessages(10000)); err != nil {
			return result{}, err
		}
	case "push":
		old, err := connection.JetStream()
		if err != nil {
			return result{}, err
		}
		sub, err := old.Subscribe(t.stream, func(message *nats.Msg) { take(message.Data) }, nats.OrderedConsumer())
		if err != nil {
			return result{}, err
		}
		if err := sub.SetPendingLimits(-1, -1); err != nil {
			return result{}, err
		}
	default:
		return result{}, errors.New("-stream NAME:pull or NAME:push")
	}
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		return result{}, fmt.Errorf("%d events came", count)
	}
	return whole(t, count, sum, time.Since(start))
}
