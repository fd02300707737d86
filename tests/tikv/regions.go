// The regions: which part of the keys is where, who leads it, and what a store answers to a request that is wrong
// about that.
package main

import (
	"bytes"
	"fmt"
	"sort"
	"sync"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/metapb"
)

// raftLimit is what TiKV takes in one raft entry.
const raftLimit = 8 << 20

// region is never changed: a new one takes its place.
type region struct {
	start, end       []byte // as clients of the store write keys
	startKey, endKey []byte // as PD does: encoded so that they sort with a timestamp behind
	id, version      uint64
	peers            []*metapb.Peer // one on each store
	leader           int
}

type regions struct {
	mu     sync.RWMutex
	all    []*region // in order, without gaps
	byID   map[uint64]*region
	stores []*metapb.Store
	nextID uint64
}

func newRegions(addresses []string) *regions {
	g := &regions{byID: map[uint64]*region{}, nextID: 100}
	for i, address := range addresses {
		g.stores = append(g.stores, &metapb.Store{Id: uint64(i + 1), Address: address, Version: "6.5.0"})
	}
	g.put(0, g.newRegion(nil, nil))
	return g
}

func (g *regions) newRegion(start, end []byte) *region {
	r := &region{start: start, end: end, startKey: encodeKey(start), endKey: encodeKey(end), id: g.newID(), version: 1}
	for _, each := range g.stores {
		r.peers = append(r.peers, &metapb.Peer{Id: g.newID(), StoreId: each.Id})
	}
	return r
}

func (g *regions) newID() uint64 {
	g.nextID++
	return g.nextID
}

func (g *regions) put(at int, r *region) {
	g.all = append(g.all, nil)
	copy(g.all[at+1:], g.all[at:])
	g.all[at] = r
	g.byID[r.id] = r
}

func (g *regions) replace(at int, r *region) {
	g.all[at] = r
	g.byID[r.id] = r
}

func (r *region) meta() *metapb.Region {
	return &metapb.Region{
		Id: r.id, StartKey: r.startKey, EndKey: r.endKey, Peers: r.peers,
		RegionEpoch: &metapb.RegionEpoch{ConfVer: 1, Version: r.version},
	}
}

func (r *region) contains(key []byte) bool {
	return bytes.Compare(key, r.start) >= 0 && (len(r.end) == 0 || bytes.Compare(key, r.end) < 0)
}

// encodeKey pads the key to groups of 8 bytes, each followed by how much of it is the key's; nothing stays nothing.
func encodeKey(key []byte) []byte {
	if len(key) == 0 {
		return nil
	}
	var out []byte
	for at := 0; at <= len(key); at += 8 {
		var group [9]byte
		n := copy(group[:8], key[at:])
		group[8] = byte(255 - 8 + n)
		out = append(out, group[:]...)
	}
	return out
}

// index is the place of the region with the encoded key.
func (g *regions) index(encoded []byte) int {
	return sort.Search(len(g.all), func(i int) bool { return bytes.Compare(g.all[i].startKey, encoded) > 0 }) - 1
}

func (g *regions) byKey(encoded []byte) *region {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.all[g.index(encoded)]
}

func (g *regions) before(encoded []byte) *region {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if at := g.index(encoded); at > 0 {
		return g.all[at-1]
	}
	return nil
}

func (g *regions) find(id uint64) *region {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.byID[id]
}

// scan lists the regions that have keys in [from, to), encoded; 0 is no limit.
func (g *regions) scan(from, to []byte, limit int) []*region {
	g.mu.RLock()
	defer g.mu.RUnlock()
	var out []*region
	for _, r := range g.all[g.index(from):] {
		if len(to) > 0 && bytes.Compare(r.startKey, to) >= 0 || limit > 0 && len(out) >= limit {
			break
		}
		out = append(out, r)
	}
	return out
}

// split starts a new region at the key, led by the same store; false if one starts there already.
func (g *regions) split(key []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	at := g.index(encodeKey(key))
	old := *g.all[at]
	if bytes.Equal(old.start, key) {
		return false
	}
	fresh := g.newRegion(key, old.end)
	old.version++
	fresh.version, fresh.leader = old.version, old.leader
	old.end, old.endKey = fresh.start, fresh.startKey
	g.replace(at, &old)
	g.put(at+1, fresh)
	return true
}

// transfer makes the peer on the store the leader; the epoch stays, as in TiKV.
func (g *regions) transfer(id, store uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for at, r := range g.all {
		if r.id != id {
			continue
		}
		if store < 1 || store > uint64(len(r.peers)) {
			return fmt.Errorf("there is no store %d", store)
		}
		changed := *r
		changed.leader = int(store - 1)
		g.replace(at, &changed)
		return nil
	}
	return fmt.Errorf("there is no region %d", id)
}

// check is what the store says to a request: go on with this region, or why not.
func (g *regions) check(store uint64, c *kvrpcpb.Context, size int, keys ...[]byte) (*region, *errorpb.Error) {
	r := g.find(c.GetRegionId())
	switch {
	case c.GetPeer() != nil && c.Peer.StoreId != store:
		return nil, &errorpb.Error{Message: "store not match", StoreNotMatch: &errorpb.StoreNotMatch{
			RequestStoreId: c.Peer.StoreId, ActualStoreId: store,
		}}
	case r == nil:
		return nil, regionNotFound(c.GetRegionId())
	case r.peers[r.leader].StoreId != store:
		return nil, notLeader(r.id, r.peers[r.leader])
	case c.GetRegionEpoch().GetVersion() != r.version || c.GetRegionEpoch().GetConfVer() != 1:
		return nil, g.epochNotMatch(r)
	case size > raftLimit:
		return nil, &errorpb.Error{
			Message:           fmt.Sprintf("raft entry is too large, region %d, entry size %d", r.id, size),
			RaftEntryTooLarge: &errorpb.RaftEntryTooLarge{RegionId: r.id, EntrySize: uint64(size)},
		}
	}
	for _, key := range keys {
		if !r.contains(key) {
			return nil, &errorpb.Error{Message: "key not in region", KeyNotInRegion: &errorpb.KeyNotInRegion{
				Key: key, RegionId: r.id, StartKey: r.startKey, EndKey: r.endKey,
			}}
		}
	}
	return r, nil
}

func regionNotFound(id uint64) *errorpb.Error {
	return &errorpb.Error{
		Message: fmt.Sprintf("region %d not found", id), RegionNotFound: &errorpb.RegionNotFound{RegionId: id},
	}
}

func notLeader(id uint64, leader *metapb.Peer) *errorpb.Error {
	return &errorpb.Error{
		Message: fmt.Sprintf("region %d: not leader", id), NotLeader: &errorpb.NotLeader{RegionId: id, Leader: leader},
	}
}

// epochNotMatch names the region as it is now and its successor: after a split they are what the client asked for.
func (g *regions) epochNotMatch(r *region) *errorpb.Error {
	now := []*metapb.Region{r.meta()}
	if len(r.endKey) > 0 {
		now = append(now, g.byKey(r.endKey).meta())
	}
	return &errorpb.Error{Message: "epoch not match", EpochNotMatch: &errorpb.EpochNotMatch{CurrentRegions: now}}
}
