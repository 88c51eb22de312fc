// SPDX-License-Identifier: BSD-3-Clause

package podstate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"tailscale.com/ipn/ipnlocal/netmapcache"
	"tailscale.com/tailcfg"

	"tailscale-nri/engine/internal/podnet"
)

// View is the content of a state directory.
type View struct {
	Pods     []StoredPod
	SetAside []string // what was set aside as .damaged or .copied, below the directory
	Bad      []string // records that cannot be read, each with the reason
}

// StoredPod is a pod's record.
type StoredPod struct {
	UID       string
	Namespace string
	Name      string
	Link      string // host end
	Tags      []string
	Profile   string // of its tailnet, "" is the default
	NodeID    string // device, "" if there is none
	Forgotten bool   // the pod is gone, its device is to be deleted
	Gone      bool   // the sandbox's network namespace is gone
}

// Inspect reads a state directory, which another process may be serving, and
// changes nothing in it. A directory that is not there has an error that wraps
// fs.ErrNotExist.
func Inspect(dir string) (View, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return View{}, fmt.Errorf("reading the state directory: %w", err)
	}
	var v View
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if isSetAside(path) {
			v.SetAside = append(v.SetAside, entry.Name())
			continue
		}
		if !entry.IsDir() || !ValidUID(entry.Name()) {
			continue
		}
		inside, _ := os.ReadDir(path) // what cannot be read is Load's to say
		for _, e := range inside {
			if isSetAside(e.Name()) {
				v.SetAside = append(v.SetAside, filepath.Join(entry.Name(), e.Name()))
			}
		}
		r, err := Load(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			// It is being made or removed.
		case err != nil:
			v.Bad = append(v.Bad, err.Error())
		default:
			v.Pods = append(v.Pods, StoredPod{
				UID: r.Pod.UID, Namespace: r.Pod.Namespace, Name: r.Pod.Name, Link: r.Link, Tags: slices.Clone(r.Pod.Tags),
				Profile: r.Pod.Features.Profile,
				NodeID:  string(r.NodeID), Forgotten: r.Forgotten, Gone: errors.Is(r.NetNS.Check(), podnet.ErrGone),
			})
		}
	}
	return v, nil
}

// StoredDERPMap is the DERP map that a node of the state directory was last told,
// nil if none was.
func StoredDERPMap(ctx context.Context, dir string) *tailcfg.DERPMap {
	netmaps, _ := filepath.Glob(filepath.Join(dir, "*", NetmapDir)) // the pattern is a good one
	for _, path := range netmaps {
		nm, err := netmapcache.NewCache(netmapcache.FileStore(path)).Load(ctx)
		if err == nil && nm.DERPMap != nil && len(nm.DERPMap.Regions) > 0 {
			return nm.DERPMap
		}
	}
	return nil
}
