// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Claim is the right to serve the nodes of a state directory. One process has
// it at a time: two would each undo what the other does.
type Claim struct {
	dir  string
	lock *os.File // on the directory; it ends with the descriptor, or the process
}

// ClaimState makes the directory, 0700, and claims it. If another process has it, standBy
// is called once, unless it is nil. ClaimState returns as soon as that process releases
// it, or with an error when ctx ends.
func ClaimState(ctx context.Context, dir string, standBy func()) (*Claim, error) {
	for {
		c, err := openClaim(dir)
		if err != nil {
			return nil, err
		}
		switch err := flock(c.lock, unix.LOCK_EX|unix.LOCK_NB); {
		case err == nil:
			return c, nil
		case !errors.Is(err, unix.EWOULDBLOCK):
			c.lock.Close()
			return nil, fmt.Errorf("locking the state directory %s: %w", dir, err)
		}
		if standBy != nil {
			standBy()
			standBy = nil
		}
		if err := c.wait(ctx); err != nil {
			return nil, err
		}
		if c.stillThere() {
			return c, nil
		}
		c.lock.Close()
	}
}

func openClaim(dir string) (*Claim, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the state directory %s: %w", dir, err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("opening the state directory: %w", err)
	}
	return &Claim{dir: dir, lock: lock}, nil
}

// wait waits for the lock in a thread of its own, so that nothing lies between
// the other process's end and this one's start. At the end of ctx that thread
// is left to wait: it ends with the other process, or with this one.
func (c *Claim) wait(ctx context.Context) error {
	var err error
	locked := make(chan struct{})
	go func() {
		err = flock(c.lock, unix.LOCK_EX)
		close(locked)
	}()
	select {
	case <-locked:
		if err != nil {
			c.lock.Close()
			return fmt.Errorf("waiting for the state directory %s: %w", c.dir, err)
		}
		return nil
	case <-ctx.Done():
		go func() {
			<-locked
			c.lock.Close()
		}()
		return fmt.Errorf("another process serves the nodes of the state directory %s: end it first (%w)", c.dir, ctx.Err())
	}
}

// stillThere reports whether the directory is the one that was locked: it may
// have been removed, and created again, during the wait.
func (c *Claim) stillThere() bool {
	held, err := c.lock.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(c.dir)
	return err == nil && os.SameFile(held, there)
}

// Release lets the next process have the directory.
func (c *Claim) Release() error { return c.lock.Close() }

func flock(f *os.File, how int) error {
	for {
		// The Go runtime's own signals may interrupt it.
		if err := unix.Flock(int(f.Fd()), how); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
