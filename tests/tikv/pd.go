// PD's service: timestamps, regions and stores, safe points.
package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"sync"
	"time"

	"github.com/pingcap/kvproto/pkg/metapb"
	"github.com/pingcap/kvproto/pkg/pdpb"
)

var header = &pdpb.ResponseHeader{ClusterId: 1}

type pdServer struct {
	pdpb.UnimplementedPDServer
	*cluster
	address string

	mu        sync.Mutex
	safePoint uint64
	services  map[string]serviceSafePoint
	etcd      map[string][]byte
}

type serviceSafePoint struct {
	ts      uint64
	expires time.Time
}

// answer runs one call: counted, delayed, under a fault or not. The header carries a refusal.
func (s *pdServer) answer(ctx context.Context, name string, run func()) (h *pdpb.ResponseHeader, leaderless bool, err error) {
	s.monitor.count(name, 0)
	refused := false
	f := s.monitor.meet(name, 0, 0)
	kind, err := s.monitor.through(ctx, name, f, run)
	refused = kind == "refuse"
	if !refused {
		return header, kind == "leaderless", err
	}
	why := &pdpb.Error{Type: pdpb.ErrorType_UNKNOWN, Message: fmt.Sprintf("[PD:test] %s is refused, as a test wants it", name)}
	return &pdpb.ResponseHeader{ClusterId: 1, Error: why}, false, err
}

func (s *pdServer) GetMembers(ctx context.Context, _ *pdpb.GetMembersRequest) (*pdpb.GetMembersResponse, error) {
	h, _, err := s.answer(ctx, "get_members", func() {})
	url := []string{"http://" + s.address}
	m := &pdpb.Member{Name: "pd", MemberId: 1, PeerUrls: url, ClientUrls: url}
	return &pdpb.GetMembersResponse{Header: h, Members: []*pdpb.Member{m}, Leader: m, EtcdLeader: m}, err
}

// Tso answers in the order asked; a delay lets the requests of a stream overlap, as a network does.
func (s *pdServer) Tso(stream pdpb.PD_TsoServer) error {
	type asked struct {
		count uint32
		due   time.Time
	}
	requests := make(chan asked, 1024)
	var failed error
	go func() {
		defer close(requests)
		for {
			r, err := stream.Recv()
			if err != nil {
				if err != io.EOF {
					failed = err
				}
				return
			}
			requests <- asked{r.Count, time.Now().Add(s.monitor.delay("tso"))}
		}
	}()
	for r := range requests {
		s.monitor.count("tso", int(r.count))
		time.Sleep(time.Until(r.due))
		if err := s.stamp(stream, r.count); err != nil {
			return err
		}
	}
	return failed
}

func (s *pdServer) stamp(stream pdpb.PD_TsoServer, count uint32) error {
	var last uint64
	h := header
	run := func() { last = s.clock.next(count) }
	kind, err := s.monitor.under(stream.Context(), "tso", s.monitor.meet("tso", 0, 0), run)
	if err != nil {
		return err
	}
	if kind == "refuse" {
		h = &pdpb.ResponseHeader{ClusterId: 1, Error: &pdpb.Error{Type: pdpb.ErrorType_UNKNOWN, Message: "[PD:test] tso is refused"}}
	}
	at := &pdpb.Timestamp{Physical: int64(physical(last)), Logical: int64(last & (1<<logicalBits - 1))}
	return stream.Send(&pdpb.TsoResponse{Header: h, Count: count, Timestamp: at})
}

func (s *pdServer) IsBootstrapped(context.Context, *pdpb.IsBootstrappedRequest) (*pdpb.IsBootstrappedResponse, error) {
	return &pdpb.IsBootstrappedResponse{Header: header, Bootstrapped: true}, nil
}

func (s *pdServer) GetStore(ctx context.Context, r *pdpb.GetStoreRequest) (*pdpb.GetStoreResponse, error) {
	out := &pdpb.GetStoreResponse{}
	var err error
	out.Header, _, err = s.answer(ctx, "get_store", func() {
		if r.StoreId >= 1 && r.StoreId <= uint64(len(s.regions.stores)) {
			out.Store = s.regions.stores[r.StoreId-1]
		}
	})
	if err == nil && out.Store == nil && out.Header.Error == nil {
		err = fmt.Errorf("invalid store ID %d, not found", r.StoreId)
	}
	return out, err
}

func (s *pdServer) GetAllStores(ctx context.Context, r *pdpb.GetAllStoresRequest) (*pdpb.GetAllStoresResponse, error) {
	out := &pdpb.GetAllStoresResponse{}
	var err error
	out.Header, _, err = s.answer(ctx, "get_all_stores", func() { out.Stores = s.regions.stores })
	return out, err
}

func (s *pdServer) region(ctx context.Context, name string, find func() *region) (*pdpb.GetRegionResponse, error) {
	out := &pdpb.GetRegionResponse{}
	h, leaderless, err := s.answer(ctx, name, func() {
		if r := find(); r != nil {
			out.Region, out.Leader = r.meta(), r.peers[r.leader]
		}
	})
	out.Header = h
	if leaderless {
		out.Leader = nil
	}
	return out, err
}

func (s *pdServer) GetRegion(ctx context.Context, r *pdpb.GetRegionRequest) (*pdpb.GetRegionResponse, error) {
	return s.region(ctx, "get_region", func() *region { return s.regions.byKey(r.RegionKey) })
}

func (s *pdServer) GetPrevRegion(ctx context.Context, r *pdpb.GetRegionRequest) (*pdpb.GetRegionResponse, error) {
	return s.region(ctx, "get_prev_region", func() *region { return s.regions.before(r.RegionKey) })
}

func (s *pdServer) GetRegionByID(ctx context.Context, r *pdpb.GetRegionByIDRequest) (*pdpb.GetRegionResponse, error) {
	return s.region(ctx, "get_region_by_id", func() *region { return s.regions.find(r.RegionId) })
}

func (s *pdServer) ScanRegions(ctx context.Context, r *pdpb.ScanRegionsRequest) (*pdpb.ScanRegionsResponse, error) {
	out := &pdpb.ScanRegionsResponse{}
	var found []*region
	h, leaderless, err := s.answer(ctx, "scan_regions", func() { found = s.regions.scan(r.StartKey, r.EndKey, int(r.Limit)) })
	out.Header = h
	for _, each := range found {
		leader := each.peers[each.leader]
		if leaderless {
			leader = &metapb.Peer{}
		}
		meta := each.meta()
		out.Regions = append(out.Regions, &pdpb.Region{Region: meta, Leader: leader})
		out.RegionMetas = append(out.RegionMetas, meta)
		out.Leaders = append(out.Leaders, leader)
	}
	return out, err
}

func (s *pdServer) GetGCSafePoint(ctx context.Context, _ *pdpb.GetGCSafePointRequest) (*pdpb.GetGCSafePointResponse, error) {
	out := &pdpb.GetGCSafePointResponse{}
	var err error
	out.Header, _, err = s.answer(ctx, "get_gc_safe_point", func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		out.SafePoint = s.safePoint
	})
	return out, err
}

// UpdateGCSafePoint only goes forwards. What is below it is collected at once, where TiKV takes its time.
func (s *pdServer) UpdateGCSafePoint(ctx context.Context, r *pdpb.UpdateGCSafePointRequest) (*pdpb.UpdateGCSafePointResponse, error) {
	out := &pdpb.UpdateGCSafePointResponse{}
	var err error
	out.Header, _, err = s.answer(ctx, "update_gc_safe_point", func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.SafePoint > s.safePoint {
			s.safePoint = r.SafePoint
			s.store.write(func() { s.journal.safePoint(r.SafePoint) })
			go s.store.collect(nil, nil, r.SafePoint)
		}
		out.NewSafePoint = s.safePoint
	})
	return out, err
}

// UpdateServiceGCSafePoint holds the safe point of one service for a time; it answers with the lowest of all.
func (s *pdServer) UpdateServiceGCSafePoint(ctx context.Context, r *pdpb.UpdateServiceGCSafePointRequest) (*pdpb.UpdateServiceGCSafePointResponse, error) {
	out := &pdpb.UpdateServiceGCSafePointResponse{ServiceId: r.ServiceId, TTL: r.TTL}
	var err error
	out.Header, _, err = s.answer(ctx, "update_service_gc_safe_point", func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if r.TTL <= 0 {
			delete(s.services, string(r.ServiceId))
		} else if lowest := s.lowestService(); len(s.services) == 0 || r.SafePoint >= lowest {
			life := time.Duration(math.MaxInt64)
			if r.TTL < int64(life/time.Second) {
				life = time.Duration(r.TTL) * time.Second
			}
			s.services[string(r.ServiceId)] = serviceSafePoint{r.SafePoint, time.Now().Add(life)}
		}
		out.MinSafePoint = s.lowestService()
	})
	return out, err
}

func (s *pdServer) lowestService() uint64 {
	lowest := uint64(math.MaxUint64)
	for id, each := range s.services {
		if time.Now().After(each.expires) {
			delete(s.services, id)
		} else if each.ts < lowest {
			lowest = each.ts
		}
	}
	return lowest
}
