// SPDX-License-Identifier: BSD-3-Clause

package nri

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/net/multiplex"
	"github.com/containerd/ttrpc"

	"tailscale-nri/nri-plugin/internal/plugintest"
	"tailscale-nri/nri-plugin/internal/statussocket"
)

// serveAndHangUp is a runtime that takes one connection, serves it, and dies.
func serveAndHangUp(t *testing.T, socket string, serve func(net.Conn) error) (hungUp chan error) {
	t.Helper()
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	hungUp = make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		ln.Close()
		if err == nil {
			err = serve(conn)
			conn.Close()
		}
		hungUp <- err
	}()
	return hungUp
}

// registerOnce answers one registration on conn.
func registerOnce(conn net.Conn) error {
	written := make(chan struct{}, 100)
	mux := multiplex.Multiplex(countedConn{conn, written}, multiplex.WithBlockedRead())
	defer mux.Close()
	ln, err := mux.Listen(multiplex.RuntimeServiceConn)
	if err != nil {
		return err
	}
	srv, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	defer srv.Close()
	api.RegisterRuntimeService(srv, registrar{})
	go srv.Serve(context.Background(), ln)
	mux.Unblock()
	// The answer is one frame, its header and its content.
	for range 2 {
		select {
		case <-written:
		case <-time.After(plugintest.Patience):
			return errors.New("no registration came")
		}
	}
	return nil
}

// countedConn tells of each write that is done.
type countedConn struct {
	net.Conn
	written chan struct{}
}

func (c countedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.written <- struct{}{}
	return n, err
}

// registrar says yes to a registration.
type registrar struct{}

func (registrar) RegisterPlugin(context.Context, *api.RegisterPluginRequest) (*api.Empty, error) {
	return &api.Empty{}, nil
}

func (registrar) UpdateContainers(context.Context, *api.UpdateContainersRequest) (*api.UpdateContainersResponse, error) {
	return nil, errors.New("not offered")
}

// startPlugin keeps a plugin registered on dir's NRI socket until the test ends.
func startPlugin(t *testing.T, dir string, pods podSet, change ...func(*Registration)) *plugintest.LogBook {
	t.Helper()
	book := plugintest.NewLogBook()
	log := slog.New(slog.NewTextHandler(book, nil))
	r := &Registration{
		Socket: filepath.Join(dir, "nri.sock"), Plugin: &Plugin{Pods: pods, Defaults: openDefaults, Log: log}, Health: &statussocket.Health{}, Log: log,
		minWait: 10 * time.Millisecond, maxWait: 100 * time.Millisecond,
	}
	for _, f := range change {
		f(r)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := plugintest.Receive(t, done, "the end of Run"); err != nil {
			t.Error(err)
		}
	})
	return book
}
