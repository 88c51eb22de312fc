// SPDX-License-Identifier: BSD-3-Clause

package main

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// contact is the plugin on one connection with the runtime.
type contact struct {
	*plugin
	stub    stub.Stub
	conn    *nriConn
	level   slog.Level // of the line that says that it is registered
	release func() bool

	syncOnce sync.Once
	synced   chan struct{} // closed when the runtime's list is worked in
}

// Configure tells of the registration.
func (c *contact) Configure(ctx context.Context, config, runtime, version string) (api.EventMask, error) {
	mask, err := c.plugin.Configure(ctx, config, runtime, version)
	if err == nil {
		c.log.Log(ctx, c.level, "registered with the container runtime", "runtime", runtime, "version", version)
	}
	return mask, err
}

// Synchronize notes that it has come.
func (c *contact) Synchronize(ctx context.Context, sandboxes []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	updates, err := c.plugin.Synchronize(ctx, sandboxes, containers)
	if err == nil {
		c.syncOnce.Do(func() { close(c.synced) })
	}
	return updates, err
}

// close ends the connection.
func (c *contact) close() {
	c.release()
	c.conn.Close()
	c.stub.Stop()
}

// settle is how long two connections are open side by side, and so the least
// time between two planned changes.
const settle = time.Second

// relist asks for the runtime's list of pods, which comes with each new
// connection and not otherwise. It returns at once; what is asked for while a
// change is under way is one more.
func (r *registration) relist() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// renew registers the plugin anew and closes the old connection only then, so
// that the runtime misses no plugin that it was told to require, and no event
// goes astray: one that comes on both is the same twice. The runtime makes a
// new plugin wait until no sandbox or container is being made, and has its
// list; when its events come is not known from here, hence a while with both.
//
// Where that fails, the old connection stays, and it is tried again.
func (r *registration) renew(ctx context.Context, old *contact) *contact {
	c, err := r.register(ctx, slog.LevelDebug)
	if err == nil {
		if err = c.holds(old); err == nil {
			old.close()
			return c
		}
		c.close()
	}
	r.log.Debug("asking the runtime for its list of pods", "err", err)
	select {
	case <-time.After(settle):
		r.relist()
	case <-old.conn.lost: // the next connection brings the list
	}
	return old
}

// holds waits until the connection is synchronized and has settled.
func (c *contact) holds(old *contact) error {
	select {
	case <-c.synced:
	case <-c.conn.lost:
		return errClosed
	}
	select {
	case <-time.After(settle):
	case <-old.conn.lost:
	case <-c.conn.lost:
		return errClosed
	}
	return nil
}
