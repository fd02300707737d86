// The journal: every change of the rows and of the regions in the order made, so that `-data DIR` outlives kill -9.
//
// One frame for each operation, written with one write(2) and not synced: it guards against the end of the process,
// not of the machine. A frame that was cut is the end.
package main

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"
	"log"
	"os"
	"path/filepath"

	"github.com/pingcap/kvproto/pkg/kvrpcpb"
)

type journal struct {
	file    *os.File // nil: nothing is kept
	pending []byte
}

type record byte

const (
	recordLock record = iota
	recordUnlock
	recordVersion
	recordRollback
	recordCollect
	recordDrop
	recordSplit
	recordTransfer
	recordSafePoint
)

func (j *journal) begin(r record) bool {
	if j.file == nil {
		return false
	}
	j.pending = append(j.pending, byte(r))
	return true
}

func (j *journal) number(all ...uint64) {
	for _, n := range all {
		j.pending = binary.AppendUvarint(j.pending, n)
	}
}

func (j *journal) bytes(all ...[]byte) {
	for _, b := range all {
		j.pending = append(binary.AppendUvarint(j.pending, uint64(len(b))), b...)
	}
}

func (j *journal) setLock(key []byte, l *lock) {
	if !j.begin(recordLock) {
		return
	}
	async := uint64(0)
	if l.async {
		async = 1
	}
	j.bytes(key, l.primary, l.value)
	j.number(l.start, l.ttl, l.forUpdate, l.minCommit, l.size, uint64(l.op), async, uint64(len(l.secondaries)))
	j.bytes(l.secondaries...)
}

func (j *journal) unlock(key []byte) {
	if j.begin(recordUnlock) {
		j.bytes(key)
	}
}

func (j *journal) addVersion(key []byte, v version) {
	if j.begin(recordVersion) {
		j.bytes(key, v.value)
		j.number(v.commit, v.start, uint64(v.kind))
	}
}

func (j *journal) addRollback(key []byte, start uint64) {
	if j.begin(recordRollback) {
		j.bytes(key)
		j.number(start)
	}
}

func (j *journal) collect(from, next, to []byte, safe uint64) {
	if next != nil {
		to = next
	}
	if j.begin(recordCollect) {
		j.bytes(from, to)
		j.number(safe)
	}
}

func (j *journal) drop(from, to []byte) {
	if j.begin(recordDrop) {
		j.bytes(from, to)
	}
}

func (j *journal) split(key []byte) {
	if j.begin(recordSplit) {
		j.bytes(key)
	}
}

func (j *journal) transfer(region, store uint64) {
	if j.begin(recordTransfer) {
		j.number(region, store)
	}
}

func (j *journal) safePoint(ts uint64) {
	if j.begin(recordSafePoint) {
		j.number(ts)
	}
}

// flush writes what was noted since the last one as a frame; a journal that cannot be written ends the server.
func (j *journal) flush() {
	if len(j.pending) == 0 {
		return
	}
	frame := make([]byte, 8, 8+len(j.pending))
	binary.BigEndian.PutUint32(frame, uint32(len(j.pending)))
	binary.BigEndian.PutUint32(frame[4:], crc32.ChecksumIEEE(j.pending))
	if _, err := j.file.Write(append(frame, j.pending...)); err != nil {
		log.Fatalf("the journal cannot be written: %v", err)
	}
	j.pending = j.pending[:0]
}

// openJournal replays what is in the folder into the cluster, and goes on from there.
func (c *cluster) openJournal(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(dir, "journal"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	good := int64(0)
	for in := bufio.NewReaderSize(file, 1<<20); ; {
		payload, err := readFrame(in)
		if err != nil {
			break
		}
		for d := (decoder{payload}); len(d.left) > 0; {
			c.replay(&d)
		}
		good += int64(8 + len(payload))
	}
	if err := file.Truncate(good); err != nil {
		return err
	}
	if _, err := file.Seek(good, io.SeekStart); err != nil {
		return err
	}
	c.journal.file = file
	return nil
}

func readFrame(in io.Reader) ([]byte, error) {
	var head [8]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return nil, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(in, payload); err != nil {
		return nil, err
	}
	if crc32.ChecksumIEEE(payload) != binary.BigEndian.Uint32(head[4:]) {
		return nil, io.ErrUnexpectedEOF
	}
	return payload, nil
}

// decoder reads a frame whose checksum was right.
type decoder struct{ left []byte }

func (d *decoder) number() uint64 {
	n, size := binary.Uvarint(d.left)
	d.left = d.left[size:]
	return n
}

func (d *decoder) bytes() []byte {
	n := d.number()
	b := d.left[:n:n]
	d.left = d.left[n:]
	return b
}

func (d *decoder) lock() (key []byte, l *lock) {
	l = &lock{}
	key, l.primary, l.value = d.bytes(), d.bytes(), d.bytes()
	l.start, l.ttl, l.forUpdate, l.minCommit, l.size = d.number(), d.number(), d.number(), d.number(), d.number()
	l.op = kvrpcpb.Op(d.number())
	l.async = d.number() == 1
	for n := d.number(); n > 0; n-- {
		l.secondaries = append(l.secondaries, d.bytes())
	}
	return key, l
}

// replay does one record again; the journal is closed meanwhile, so nothing is noted twice.
func (c *cluster) replay(d *decoder) {
	what := record(d.left[0])
	d.left = d.left[1:]
	switch s := c.store; what {
	case recordLock:
		key, l := d.lock()
		c.clock.past(max(l.start, l.minCommit))
		s.setLock(key, l)
	case recordUnlock:
		s.unlock(s.ensure(d.bytes()))
	case recordVersion:
		key, value := d.bytes(), d.bytes()
		v := version{commit: d.number(), start: d.number(), kind: kind(d.number()), value: value}
		c.clock.past(v.commit)
		s.addVersion(s.ensure(key), v)
	case recordRollback:
		s.addRollback(s.ensure(d.bytes()), d.number())
	case recordCollect:
		from, to := d.bytes(), d.bytes()
		s.collect(from, to, d.number())
	case recordDrop:
		s.drop(d.bytes(), d.bytes())
	case recordSplit:
		c.regions.split(d.bytes())
	case recordTransfer:
		c.regions.transfer(d.number(), d.number())
	case recordSafePoint:
		c.pd.safePoint = d.number()
	}
}
