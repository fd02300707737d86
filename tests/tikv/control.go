// The tests' own door, HTTP and JSON: counters, faults, delays, regions, bulk loads.
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"sync/atomic"
	"time"
)

type handler func(r *http.Request) (interface{}, error)

// control answers with what a handler returns; its error is the client's fault and one line of text.
func (c *cluster) control() http.Handler {
	mux := http.NewServeMux()
	for path, methods := range map[string]map[string]handler{
		"/counters": {"GET": c.counters, "DELETE": c.resetCounters},
		"/faults":   {"GET": c.faults, "POST": c.addFault, "DELETE": c.clearFaults},
		"/delays":   {"PUT": c.setDelays},
		"/regions":  {"GET": c.listRegions},
		"/split":    {"POST": c.split},
		"/transfer": {"POST": c.transfer},
		"/load":     {"POST": c.load},
		"/stats":    {"GET": c.stats},
	} {
		methods := methods
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			handle, known := methods[r.Method]
			if !known {
				http.Error(w, "no "+r.Method+" here", http.StatusMethodNotAllowed)
				return
			}
			out, err := handle(r)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			if err := json.NewEncoder(w).Encode(out); err != nil {
				panic(http.ErrAbortHandler)
			}
		})
	}
	return mux
}

func parse(r *http.Request, into interface{}) error {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	return d.Decode(into)
}

type done struct{}

func (c *cluster) counters(*http.Request) (interface{}, error) {
	out := map[string]map[string]uint64{}
	for call, n := range c.monitor.counts {
		out[call] = map[string]uint64{"calls": atomic.LoadUint64(&n.calls), "keys": atomic.LoadUint64(&n.keys)}
	}
	return out, nil
}

func (c *cluster) resetCounters(*http.Request) (interface{}, error) {
	c.monitor.reset()
	return done{}, nil
}

func (c *cluster) faults(*http.Request) (interface{}, error) { return c.monitor.list(), nil }

func (c *cluster) addFault(r *http.Request) (interface{}, error) {
	f := &fault{}
	if err := parse(r, f); err != nil {
		return nil, err
	}
	if err := c.monitor.add(f); err != nil {
		return nil, err
	}
	return map[string]int{"id": f.ID}, nil
}

func (c *cluster) clearFaults(r *http.Request) (interface{}, error) {
	id := 0
	if text := r.URL.Query().Get("id"); text != "" {
		var err error
		if id, err = strconv.Atoi(text); err != nil {
			return nil, err
		}
	}
	c.monitor.clear(id)
	return done{}, nil
}

// setDelays takes milliseconds per service.
func (c *cluster) setDelays(r *http.Request) (interface{}, error) {
	wanted := map[string]float64{}
	if err := parse(r, &wanted); err != nil {
		return nil, err
	}
	for service, ms := range wanted {
		delay, known := c.monitor.delays[service]
		if !known {
			return nil, fmt.Errorf("there is no service %q", service)
		}
		atomic.StoreInt64(delay, int64(ms*float64(time.Millisecond)))
	}
	return done{}, nil
}

func (c *cluster) listRegions(*http.Request) (interface{}, error) {
	type row struct {
		ID    uint64 `json:"id"`
		Start string `json:"start"` // in hex, as all keys here
		End   string `json:"end"`
		Epoch uint64 `json:"epoch"`
		Store uint64 `json:"store"` // of the leader
	}
	var out []row
	for _, r := range c.regions.scan(nil, nil, 0) {
		start, end := hex.EncodeToString(r.start), hex.EncodeToString(r.end)
		out = append(out, row{r.id, start, end, r.version, r.peers[r.leader].StoreId})
	}
	return out, nil
}

func (c *cluster) split(r *http.Request) (interface{}, error) {
	var wanted struct {
		Key string `json:"key"`
	}
	if err := parse(r, &wanted); err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(wanted.Key)
	if err != nil {
		return nil, err
	}
	if !c.splitAt(key) {
		return nil, fmt.Errorf("a region starts at %q already", key)
	}
	return done{}, nil
}

func (c *cluster) splitAt(key []byte) (did bool) {
	c.store.write(func() {
		if did = c.regions.split(key); did {
			c.journal.split(key)
		}
	})
	return did
}

func (c *cluster) transfer(r *http.Request) (interface{}, error) {
	var wanted struct {
		Region uint64 `json:"region"`
		Store  uint64 `json:"store"`
	}
	if err := parse(r, &wanted); err != nil {
		return nil, err
	}
	return done{}, c.lead(wanted.Region, wanted.Store)
}

func (c *cluster) lead(region, store uint64) (err error) {
	c.store.write(func() {
		if err = c.regions.transfer(region, store); err == nil {
			c.journal.transfer(region, store)
		}
	})
	return err
}

// load takes frames of two 32-bit lengths (big-endian), a key and a value; all are committed at one timestamp.
func (c *cluster) load(r *http.Request) (interface{}, error) {
	const batch = 2000
	in := bufio.NewReaderSize(r.Body, 1<<20)
	commit, loaded := c.clock.next(2), 0
	var keys, values [][]byte
	for {
		key, value, err := readPair(in)
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("pair %d: %v", loaded+len(keys), err)
		}
		if err == nil {
			keys, values = append(keys, key), append(values, value)
		}
		if len(keys) >= batch || err == io.EOF {
			c.store.load(keys, values, commit)
			loaded += len(keys)
			keys, values = keys[:0], values[:0]
		}
		if err == io.EOF {
			return map[string]uint64{"pairs": uint64(loaded), "commit_ts": commit}, nil
		}
	}
}

func readPair(in io.Reader) (key, value []byte, err error) {
	var head [8]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	both := make([]byte, n+binary.BigEndian.Uint32(head[4:]))
	if _, err := io.ReadFull(in, both); err != nil {
		return nil, nil, io.ErrUnexpectedEOF
	}
	return both[:n:n], both[n:], nil
}

func (c *cluster) stats(*http.Request) (interface{}, error) {
	c.store.mu.RLock()
	defer c.store.mu.RUnlock()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	versions := uint64(0)
	c.store.rows.Ascend(func(each *row) bool {
		versions += uint64(len(each.versions))
		return true
	})
	c.pd.mu.Lock()
	defer c.pd.mu.Unlock()
	return map[string]uint64{
		"rows": uint64(c.store.rows.Len()), "versions": versions, "locks": uint64(c.store.locked.Len()),
		"waiting": uint64(len(c.store.waits)), "heap": memory.HeapAlloc, "safe_point": c.pd.safePoint, "now": c.clock.next(1),
	}, nil
}
