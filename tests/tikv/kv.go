// TiKV's service on one listener: each call checked against the regions as the store behind this listener sees them.
package main

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"sync"

	"github.com/pingcap/kvproto/pkg/errorpb"
	"github.com/pingcap/kvproto/pkg/kvrpcpb"
	"github.com/pingcap/kvproto/pkg/tikvpb"
)

type kvServer struct {
	tikvpb.UnimplementedTikvServer
	*cluster
	id uint64
}

type call struct {
	name string
	keys [][]byte // that must be in the region
	size int      // of what goes into the raft log
	// counted instead of the keys: what the answer has
	found func() int
}

// answer runs one call: counted, delayed, under a fault or not, refused by the region or done.
func answer[T any](s *kvServer, ctx context.Context, c call, at *kvrpcpb.Context, run func(*region) *T) (*T, error) {
	var out *T
	f := s.monitor.meet(c.name, s.id, at.GetRegionId())
	kind, err := s.monitor.through(ctx, c.name, f, func() {
		g, refused := s.regions.check(s.id, at, c.size, c.keys...)
		if refused != nil {
			out = refusal[T](refused)
		} else {
			out = run(g)
		}
	})
	n := len(c.keys)
	if c.found != nil {
		n = c.found()
	}
	s.monitor.count(c.name, n)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		out = refusal[T](s.wanted(kind, at))
	}
	return out, nil
}

// refusal is an answer that has only a region error: every answer has this field, and no common interface to set it.
func refusal[T any](why *errorpb.Error) *T {
	out := new(T)
	reflect.ValueOf(out).Elem().FieldByName("RegionError").Set(reflect.ValueOf(why))
	return out
}

// wanted is the region error that a fault asks for.
func (s *kvServer) wanted(kind string, at *kvrpcpb.Context) *errorpb.Error {
	switch kind {
	case "not_leader":
		return notLeader(at.GetRegionId(), nil)
	case "epoch_not_match":
		if g := s.regions.find(at.GetRegionId()); g != nil {
			return s.regions.epochNotMatch(g)
		}
		return regionNotFound(at.GetRegionId())
	case "server_is_busy":
		return &errorpb.Error{Message: "server is busy", ServerIsBusy: &errorpb.ServerIsBusy{Reason: "a test wants it"}}
	case "stale_command":
		return &errorpb.Error{Message: "stale command", StaleCommand: &errorpb.StaleCommand{}}
	}
	return regionNotFound(at.GetRegionId())
}

func keysOf(mutations []*kvrpcpb.Mutation) [][]byte {
	keys := make([][]byte, len(mutations))
	for i, m := range mutations {
		keys[i] = m.Key
	}
	return keys
}

func (s *kvServer) KvGet(ctx context.Context, r *kvrpcpb.GetRequest) (*kvrpcpb.GetResponse, error) {
	return answer(s, ctx, call{name: "get", keys: [][]byte{r.Key}}, r.Context, func(*region) *kvrpcpb.GetResponse { return s.store.get(r) })
}

func (s *kvServer) KvBatchGet(ctx context.Context, r *kvrpcpb.BatchGetRequest) (*kvrpcpb.BatchGetResponse, error) {
	return answer(s, ctx, call{name: "batch_get", keys: r.Keys}, r.Context, func(*region) *kvrpcpb.BatchGetResponse { return s.store.batchGet(r) })
}

// KvScan counts the pairs that it found.
func (s *kvServer) KvScan(ctx context.Context, r *kvrpcpb.ScanRequest) (*kvrpcpb.ScanResponse, error) {
	n := 0
	return answer(s, ctx, call{name: "scan", found: func() int { return n }}, r.Context, func(g *region) *kvrpcpb.ScanResponse {
		out := s.store.scan(r, g)
		n = len(out.Pairs)
		return out
	})
}

func (s *kvServer) KvPrewrite(ctx context.Context, r *kvrpcpb.PrewriteRequest) (*kvrpcpb.PrewriteResponse, error) {
	c := call{name: "prewrite", keys: keysOf(r.Mutations), size: r.Size()}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.PrewriteResponse { return s.store.prewrite(r) })
}

func (s *kvServer) KvCommit(ctx context.Context, r *kvrpcpb.CommitRequest) (*kvrpcpb.CommitResponse, error) {
	return answer(s, ctx, call{name: "commit", keys: r.Keys}, r.Context, func(*region) *kvrpcpb.CommitResponse { return s.store.commit(r) })
}

func (s *kvServer) KvCleanup(ctx context.Context, r *kvrpcpb.CleanupRequest) (*kvrpcpb.CleanupResponse, error) {
	c := call{name: "cleanup", keys: [][]byte{r.Key}}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.CleanupResponse { return s.store.cleanup(r) })
}

func (s *kvServer) KvBatchRollback(ctx context.Context, r *kvrpcpb.BatchRollbackRequest) (*kvrpcpb.BatchRollbackResponse, error) {
	c := call{name: "batch_rollback", keys: r.Keys}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.BatchRollbackResponse { return s.store.batchRollback(r) })
}

func (s *kvServer) KvPessimisticLock(ctx context.Context, r *kvrpcpb.PessimisticLockRequest) (*kvrpcpb.PessimisticLockResponse, error) {
	c := call{name: "pessimistic_lock", keys: keysOf(r.Mutations), size: r.Size()}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.PessimisticLockResponse { return s.store.pessimisticLock(ctx, r) })
}

func (s *kvServer) KVPessimisticRollback(ctx context.Context, r *kvrpcpb.PessimisticRollbackRequest) (*kvrpcpb.PessimisticRollbackResponse, error) {
	c := call{name: "pessimistic_rollback", keys: r.Keys}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.PessimisticRollbackResponse { return s.store.pessimisticRollback(r) })
}

func (s *kvServer) KvTxnHeartBeat(ctx context.Context, r *kvrpcpb.TxnHeartBeatRequest) (*kvrpcpb.TxnHeartBeatResponse, error) {
	c := call{name: "txn_heart_beat", keys: [][]byte{r.PrimaryLock}}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.TxnHeartBeatResponse { return s.store.txnHeartBeat(r) })
}

func (s *kvServer) KvCheckTxnStatus(ctx context.Context, r *kvrpcpb.CheckTxnStatusRequest) (*kvrpcpb.CheckTxnStatusResponse, error) {
	c := call{name: "check_txn_status", keys: [][]byte{r.PrimaryKey}}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.CheckTxnStatusResponse { return s.store.checkTxnStatus(r) })
}

func (s *kvServer) KvCheckSecondaryLocks(ctx context.Context, r *kvrpcpb.CheckSecondaryLocksRequest) (*kvrpcpb.CheckSecondaryLocksResponse, error) {
	c := call{name: "check_secondary_locks", keys: r.Keys}
	return answer(s, ctx, c, r.Context, func(*region) *kvrpcpb.CheckSecondaryLocksResponse { return s.store.checkSecondaryLocks(r) })
}

// KvScanLock counts the locks that it found.
func (s *kvServer) KvScanLock(ctx context.Context, r *kvrpcpb.ScanLockRequest) (*kvrpcpb.ScanLockResponse, error) {
	n := 0
	return answer(s, ctx, call{name: "scan_lock", found: func() int { return n }}, r.Context, func(g *region) *kvrpcpb.ScanLockResponse {
		found := s.store.scanLock(later(r.StartKey, g.start), earlierEnd(r.EndKey, g.end), r.MaxVersion, r.Limit)
		n = len(found)
		return &kvrpcpb.ScanLockResponse{Locks: found}
	})
}

func (s *kvServer) KvResolveLock(ctx context.Context, r *kvrpcpb.ResolveLockRequest) (*kvrpcpb.ResolveLockResponse, error) {
	c := call{name: "resolve_lock", keys: r.Keys}
	return answer(s, ctx, c, r.Context, func(g *region) *kvrpcpb.ResolveLockResponse { return s.store.resolveLock(r, g) })
}

func (s *kvServer) KvGC(ctx context.Context, r *kvrpcpb.GCRequest) (*kvrpcpb.GCResponse, error) {
	return answer(s, ctx, call{name: "gc"}, r.Context, func(g *region) *kvrpcpb.GCResponse {
		s.store.collect(g.start, g.end, r.SafePoint)
		return &kvrpcpb.GCResponse{}
	})
}

func (s *kvServer) KvDeleteRange(ctx context.Context, r *kvrpcpb.DeleteRangeRequest) (*kvrpcpb.DeleteRangeResponse, error) {
	return answer(s, ctx, call{name: "delete_range", keys: [][]byte{r.StartKey}}, r.Context, func(g *region) *kvrpcpb.DeleteRangeResponse {
		s.store.drop(r.StartKey, earlierEnd(r.EndKey, g.end))
		return &kvrpcpb.DeleteRangeResponse{}
	})
}

// UnsafeDestroyRange, as PhysicalScanLock below, goes to a store and not to a region.
func (s *kvServer) UnsafeDestroyRange(ctx context.Context, r *kvrpcpb.UnsafeDestroyRangeRequest) (*kvrpcpb.UnsafeDestroyRangeResponse, error) {
	err := s.whole(ctx, "unsafe_destroy_range", func() { s.store.drop(r.StartKey, r.EndKey) })
	return &kvrpcpb.UnsafeDestroyRangeResponse{}, err
}

func (s *kvServer) PhysicalScanLock(ctx context.Context, r *kvrpcpb.PhysicalScanLockRequest) (*kvrpcpb.PhysicalScanLockResponse, error) {
	out := &kvrpcpb.PhysicalScanLockResponse{}
	err := s.whole(ctx, "physical_scan_lock", func() { out.Locks = s.store.scanLock(r.StartKey, nil, r.MaxTs, r.Limit) })
	return out, err
}

func (s *kvServer) whole(ctx context.Context, name string, run func()) error {
	s.monitor.count(name, 0)
	_, err := s.monitor.through(ctx, name, s.monitor.meet(name, s.id, 0), run)
	return err
}

// BatchCommands is how client-go sends most calls; each is answered as soon as it is done.
func (s *kvServer) BatchCommands(stream tikvpb.Tikv_BatchCommandsServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	var sending sync.Mutex
	failed := make(chan error, 1)
	fail := func(err error) {
		select {
		case failed <- err:
		default:
		}
	}
	one := func(id uint64, r *tikvpb.BatchCommandsRequest_Request) {
		out, err := s.dispatch(ctx, r)
		if err == nil {
			sending.Lock()
			err = stream.Send(&tikvpb.BatchCommandsResponse{
				RequestIds: []uint64{id}, Responses: []*tikvpb.BatchCommandsResponse_Response{out},
			})
			sending.Unlock()
		}
		if err != nil {
			fail(err)
		}
	}
	go func() {
		for {
			batch, err := stream.Recv()
			if err != nil {
				fail(err)
				return
			}
			for i, r := range batch.Requests {
				go one(batch.RequestIds[i], r)
			}
		}
	}()
	err := <-failed
	if err == io.EOF {
		return nil
	}
	return err
}

type response = tikvpb.BatchCommandsResponse_Response

func (s *kvServer) dispatch(ctx context.Context, r *tikvpb.BatchCommandsRequest_Request) (*response, error) {
	switch c := r.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_Get:
		x, err := s.KvGet(ctx, c.Get)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Get{Get: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_BatchGet:
		x, err := s.KvBatchGet(ctx, c.BatchGet)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_BatchGet{BatchGet: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_Scan:
		x, err := s.KvScan(ctx, c.Scan)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Scan{Scan: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_Prewrite:
		x, err := s.KvPrewrite(ctx, c.Prewrite)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Prewrite{Prewrite: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_Commit:
		x, err := s.KvCommit(ctx, c.Commit)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Commit{Commit: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_Cleanup:
		x, err := s.KvCleanup(ctx, c.Cleanup)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Cleanup{Cleanup: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_BatchRollback:
		x, err := s.KvBatchRollback(ctx, c.BatchRollback)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_BatchRollback{BatchRollback: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_PessimisticLock:
		x, err := s.KvPessimisticLock(ctx, c.PessimisticLock)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_PessimisticLock{PessimisticLock: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_PessimisticRollback:
		x, err := s.KVPessimisticRollback(ctx, c.PessimisticRollback)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_PessimisticRollback{PessimisticRollback: x}}, err
	}
	return s.dispatchRare(ctx, r)
}

func (s *kvServer) dispatchRare(ctx context.Context, r *tikvpb.BatchCommandsRequest_Request) (*response, error) {
	switch c := r.Cmd.(type) {
	case *tikvpb.BatchCommandsRequest_Request_TxnHeartBeat:
		x, err := s.KvTxnHeartBeat(ctx, c.TxnHeartBeat)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_TxnHeartBeat{TxnHeartBeat: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_CheckTxnStatus:
		x, err := s.KvCheckTxnStatus(ctx, c.CheckTxnStatus)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_CheckTxnStatus{CheckTxnStatus: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_CheckSecondaryLocks:
		x, err := s.KvCheckSecondaryLocks(ctx, c.CheckSecondaryLocks)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_CheckSecondaryLocks{CheckSecondaryLocks: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_ScanLock:
		x, err := s.KvScanLock(ctx, c.ScanLock)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_ScanLock{ScanLock: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_ResolveLock:
		x, err := s.KvResolveLock(ctx, c.ResolveLock)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_ResolveLock{ResolveLock: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_GC:
		x, err := s.KvGC(ctx, c.GC)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_GC{GC: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_DeleteRange:
		x, err := s.KvDeleteRange(ctx, c.DeleteRange)
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_DeleteRange{DeleteRange: x}}, err
	case *tikvpb.BatchCommandsRequest_Request_Empty:
		empty := &tikvpb.BatchCommandsEmptyResponse{TestId: c.Empty.TestId}
		return &response{Cmd: &tikvpb.BatchCommandsResponse_Response_Empty{Empty: empty}}, nil
	}
	return nil, fmt.Errorf("the test server does not know %T", r.Cmd)
}
