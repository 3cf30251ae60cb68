package main

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// As many as the daemon takes at a time.
const connections = 256

var client = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: connections, MaxConnsPerHost: connections, ReadBufferSize: 64 << 10, WriteBufferSize: 64 << 10,
}}

func (t task) url(query string) string {
	return t.at + "/v1/streams/" + url.PathEscape(t.stream) + "/events" + query
}

func (t task) ask(method, url string, body io.Reader) (*http.Response, error) {
	request, err := http.NewRequest(method, url, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+t.token)
	answer, err := client.Do(request)
	if err == nil && answer.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4096))
		answer.Body.Close()
		return nil, fmt.Errorf("%s: %s", answer.Status, text)
	}
	return answer, err
}

// post appends one event by a request of its own; the connection is kept.
func (t task) post(payload []byte) error {
	answer, err := t.ask("POST", t.url("?whole=true&class=durable"), bytes.NewReader(payload))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	line, err := io.ReadAll(answer.Body)
	if err == nil && !bytes.Contains(line, []byte(`"seq":`)) {
		err = fmt.Errorf("no acknowledgement: %s", line)
	}
	return err
}

func gembaOne(t task) (result, error) { return oneByOne(t, t.post) }

// gembaConnections has one event in flight on each of many connections.
func gembaConnections(t task) (result, error) {
	var waiting sync.WaitGroup
	var sent atomic.Int64
	failed := make(chan error, connections)
	start := time.Now()
	for range connections {
		waiting.Go(func() {
			for t.goesOn(int(sent.Load()), start) {
				if err := t.post(event(int(sent.Add(1)))); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	waiting.Wait()
	took := time.Since(start)
	select {
	case err := <-failed:
		return result{}, err
	default:
		return result{events: int(sent.Load()), took: took}, nil
	}
}

// lines is an endless body: a line an event, as long as fewer than 1,024 are unanswered.
type lines struct {
	task     task
	start    time.Time
	sent     int
	room     int
	answered chan int
}

// Read gives as many lines as there is room for.
func (l *lines) Read(p []byte) (int, error) {
	for l.room == 0 {
		l.room += <-l.answered
	}
	if !l.task.goesOn(l.sent, l.start) {
		return 0, io.EOF
	}
	filled := 0
	for l.room > 0 && filled+eventBytes < len(p) && (l.task.events == 0 || l.sent < l.task.events) {
		filled += copy(p[filled:], append(event(l.sent), '\n'))
		l.sent++
		l.room--
		select {
		case more := <-l.answered:
			l.room += more
		default:
		}
	}
	return filled, nil
}

// gembaMany appends by one request without end, whose lines are answered as they become durable.
func gembaMany(t task) (result, error) {
	body := &lines{task: t, start: time.Now(), room: inFlight, answered: make(chan int, inFlight)}
	answer, err := t.ask("POST", t.url("?class=durable"), body)
	if err != nil {
		return result{}, err
	}
	defer answer.Body.Close()
	buffer, count, tail := make([]byte, 256<<10), 0, []byte(nil)
	for {
		n, err := answer.Body.Read(buffer)
		if bytes.Contains(buffer[:n], []byte(`"error"`)) {
			return result{}, fmt.Errorf("the append ended: %s", buffer[:n])
		}
		if n > 0 {
			tail = append(tail[:0], buffer[max(0, n-200):n]...)
		}
		if more := bytes.Count(buffer[:n], []byte{'\n'}); more > 0 {
			count += more
			body.answered <- more
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return result{}, err
		}
	}
	took := time.Since(body.start)
	if count != body.sent {
		return result{}, fmt.Errorf("%d of %d events were answered, the last: %s", count, body.sent, tail)
	}
	return result{events: count, took: took}, nil
}

// gembaReplay reads all of the stream, and takes the payload out of each line.
func gembaReplay(t task) (result, error) {
	start := time.Now()
	answer, err := t.ask("GET", t.url(""), nil)
	if err != nil {
		return result{}, err
	}
	defer answer.Body.Close()
	reader := bufio.NewReaderSize(answer.Body, 256<<10)
	count, sum := 0, 0
	payload := make([]byte, 4*eventBytes)
	for {
		line, err := reader.ReadSlice('\n')
		if err == io.EOF {
			break
		}
		if err != nil {
			return result{}, err
		}
		_, data, found := bytes.Cut(line, []byte(`"data":"`))
		end := bytes.IndexByte(data, '"')
		if !found || end < 0 {
			return result{}, fmt.Errorf("no event: %s", line)
		}
		n, err := base64.StdEncoding.Decode(payload, data[:end])
		if err != nil {
			return result{}, err
		}
		count++
		sum += n
	}
	return whole(t, count, sum, time.Since(start))
}

// gembaExport takes the stream as a CAR file: signed batches as they are on disk, which this program does not look into.
func gembaExport(t task) (result, error) {
	start := time.Now()
	answer, err := t.ask("GET", t.at+"/v1/log/export?pattern="+url.QueryEscape(t.stream), nil)
	if err != nil {
		return result{}, err
	}
	defer answer.Body.Close()
	n, err := io.Copy(io.Discard, answer.Body)
	return result{events: t.events, took: time.Since(start), bytes: int(n)}, err
}
