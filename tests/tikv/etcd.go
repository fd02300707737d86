// The little of etcd that client-go asks PD for: it reads TiDB's safe point there every ten seconds, and a client that
// could not for 100 s refuses to read at all.
package main

import (
	"bytes"
	"context"

	"github.com/golang/protobuf/proto"
	"google.golang.org/grpc"
)

type etcdRange struct {
	Key      []byte `protobuf:"bytes,1,opt,name=key,proto3"`
	RangeEnd []byte `protobuf:"bytes,2,opt,name=range_end,proto3"`
}

type etcdPair struct {
	Key   []byte `protobuf:"bytes,1,opt,name=key,proto3"`
	Value []byte `protobuf:"bytes,5,opt,name=value,proto3"`
}

type etcdHeader struct {
	ClusterId uint64 `protobuf:"varint,1,opt,name=cluster_id,proto3"`
	Revision  int64  `protobuf:"varint,3,opt,name=revision,proto3"`
}

type etcdRanged struct {
	Header *etcdHeader `protobuf:"bytes,1,opt,name=header,proto3"`
	Kvs    []*etcdPair `protobuf:"bytes,2,rep,name=kvs,proto3"`
	Count  int64       `protobuf:"varint,4,opt,name=count,proto3"`
}

type etcdPut struct {
	Key   []byte `protobuf:"bytes,1,opt,name=key,proto3"`
	Value []byte `protobuf:"bytes,2,opt,name=value,proto3"`
}

type etcdDone struct {
	Header *etcdHeader `protobuf:"bytes,1,opt,name=header,proto3"`
}

func (m *etcdRange) Reset()          { *m = etcdRange{} }
func (m *etcdRange) String() string  { return proto.CompactTextString(m) }
func (*etcdRange) ProtoMessage()     {}
func (m *etcdPair) Reset()           { *m = etcdPair{} }
func (m *etcdPair) String() string   { return proto.CompactTextString(m) }
func (*etcdPair) ProtoMessage()      {}
func (m *etcdHeader) Reset()         { *m = etcdHeader{} }
func (m *etcdHeader) String() string { return proto.CompactTextString(m) }
func (*etcdHeader) ProtoMessage()    {}
func (m *etcdRanged) Reset()         { *m = etcdRanged{} }
func (m *etcdRanged) String() string { return proto.CompactTextString(m) }
func (*etcdRanged) ProtoMessage()    {}
func (m *etcdPut) Reset()            { *m = etcdPut{} }
func (m *etcdPut) String() string    { return proto.CompactTextString(m) }
func (*etcdPut) ProtoMessage()       {}
func (m *etcdDone) Reset()           { *m = etcdDone{} }
func (m *etcdDone) String() string   { return proto.CompactTextString(m) }
func (*etcdDone) ProtoMessage()      {}

func (s *pdServer) etcdGet(ctx context.Context, r *etcdRange) (*etcdRanged, error) {
	out := &etcdRanged{Header: &etcdHeader{ClusterId: 1, Revision: 1}}
	_, _, err := s.answer(ctx, "etcd", func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for key, value := range s.etcd {
			in := key == string(r.Key) || bytes.Compare([]byte(key), r.Key) > 0 && bytes.Compare([]byte(key), r.RangeEnd) < 0
			if in {
				out.Kvs = append(out.Kvs, &etcdPair{Key: []byte(key), Value: value})
			}
		}
	})
	out.Count = int64(len(out.Kvs))
	return out, err
}

func (s *pdServer) etcdPut(ctx context.Context, r *etcdPut) (*etcdDone, error) {
	_, _, err := s.answer(ctx, "etcd", func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.etcd[string(r.Key)] = r.Value
	})
	return &etcdDone{Header: &etcdHeader{ClusterId: 1, Revision: 1}}, err
}

// registerEtcd serves etcdserverpb.KV without etcd's own module.
func (s *pdServer) registerEtcd(g *grpc.Server) {
	unary := func(name string, run func(context.Context, func(interface{}) error) (interface{}, error)) grpc.MethodDesc {
		return grpc.MethodDesc{MethodName: name, Handler: func(
			_ interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor,
		) (interface{}, error) {
			return run(ctx, decode)
		}}
	}
	g.RegisterService(&grpc.ServiceDesc{
		ServiceName: "etcdserverpb.KV",
		HandlerType: (*interface{})(nil),
		Methods: []grpc.MethodDesc{
			unary("Range", func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				r := &etcdRange{}
				if err := decode(r); err != nil {
					return nil, err
				}
				return s.etcdGet(ctx, r)
			}),
			unary("Put", func(ctx context.Context, decode func(interface{}) error) (interface{}, error) {
				r := &etcdPut{}
				if err := decode(r); err != nil {
					return nil, err
				}
				return s.etcdPut(ctx, r)
			}),
		},
	}, s)
}
