// SPDX-License-Identifier: BSD-3-Clause

package engine

// diskState is what this process knows of a node's record on disk, beyond what is in it:
// whether it is there, up to date, and this host's. node.op guards it.
type diskState struct {
	fresh   bool   // nothing is on disk yet
	retired bool   // the directory is gone, and so is the node
	unsaved string // why the record on disk is not node.rec, "" if it is

	foreign  bool // the record may be a copy of another host's
	asked    bool // the tailnet was asked about that before the node was served
	admitted bool // the control plane has let the node in since this process began
}

// firstLook reports whether the tailnet is to be asked if the record's device is another
// host's: the record may be a copy, the device may be in the tailnet, and netns returns nil,
// so the pod is here. It reports true once.
func (d *diskState) firstLook(r *record, netns func() error) bool {
	neverIn := r.NodeID == "" && !r.Registering
	if neverIn || !d.foreign || d.asked || netns() != nil {
		return false
	}
	d.asked = true
	return true
}
