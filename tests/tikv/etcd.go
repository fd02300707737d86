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

type etcdMembersRequest struct{}

type etcdMember struct {
	ID         uint64   `protobuf:"varint,1,opt,name=ID,proto3"`
	Name       string   `protobuf:"bytes,2,opt,name=name,proto3"`
	PeerURLs   []string `protobuf:"bytes,3,rep,name=peerURLs,proto3"`
	ClientURLs []string `protobuf:"bytes,4,rep,name=clientURLs,proto3"`
}

type etcdMembers struct {
	Header  *etcdHeader   `protobuf:"bytes,1,opt,name=header,proto3"`
	Members []*etcdMember `protobuf:"bytes,2,rep,name=members,proto3"`
}

func (m *etcdMembersRequest) Reset()         { *m = etcdMembersRequest{} }
func (m *etcdMembersRequest) String() string { return proto.CompactTextString(m) }
func (*etcdMembersRequest) ProtoMessage()    {}
func (m *etcdMember) Reset()                 { *m = etcdMember{} }
func (m *etcdMember) String() string         { return proto.CompactTextString(m) }
func (*etcdMember) ProtoMessage()            {}
func (m *etcdMembers) Reset()                { *m = etcdMembers{} }
func (m *etcdMembers) String() string        { return proto.CompactTextString(m) }
func (*etcdMembers) ProtoMessage()           {}

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

// etcdMembers is asked every 30 s: the client learns the addresses of the members anew.
func (s *pdServer) etcdMembers(ctx context.Context, _ *etcdMembersRequest) (*etcdMembers, error) {
	_, _, err := s.answer(ctx, "etcd", func() {})
	url := []string{"http://" + s.address}
	members := []*etcdMember{{ID: 1, Name: "pd", PeerURLs: url, ClientURLs: url}}
	return &etcdMembers{Header: &etcdHeader{ClusterId: 1, Revision: 1}, Members: members}, err
}

// unary describes a method that is registered without generated code.
func unary[Q, A any](name string, run func(context.Context, *Q) (*A, error)) grpc.MethodDesc {
	return grpc.MethodDesc{MethodName: name, Handler: func(
		_ interface{}, ctx context.Context, decode func(interface{}) error, _ grpc.UnaryServerInterceptor,
	) (interface{}, error) {
		r := new(Q)
		if err := decode(r); err != nil {
			return nil, err
		}
		return run(ctx, r)
	}}
}

// registerEtcd serves the little of etcd without its module.
func (s *pdServer) registerEtcd(g *grpc.Server) {
	for name, methods := range map[string][]grpc.MethodDesc{
		"etcdserverpb.KV":      {unary("Range", s.etcdGet), unary("Put", s.etcdPut)},
		"etcdserverpb.Cluster": {unary("MemberList", s.etcdMembers)},
	} {
		g.RegisterService(&grpc.ServiceDesc{ServiceName: name, HandlerType: (*interface{})(nil), Methods: methods}, s)
	}
}
