// SPDX-License-Identifier: BSD-3-Clause

// Package podstate is what the pods' nodes have on disk, and who may use it.
//
//	state directory              0700   Claim: a lock on it, one process has it at a time
//	├── served.json                     Served: when a process last used the directory
//	├── <UID of a pod>           0700
//	│   ├── pod.json                    Record: the pod, its link, its device
//	│   ├── tailscaled.state            Store: the node's keys and preferences
//	│   ├── netmap/                     NetmapStore: the last netmap, to start from
//	│   ├── profile-data/               the backend's own; a netmap is lent to it here
//	│   ├── resolv.conf          0644   RewriteFile: of a pod that asked for DNS, mounted in its containers
//	│   ├── socket/              0755   of a pod that asked for its LocalAPI, mounted in its containers
//	│   └── *.damaged, *.copied         SetAside, SetCopyAside
//	└── <UID>.damaged, .copied          the same, of a whole directory
//
// Files are 0600 but where it says otherwise. Auth keys are never stored.
//
// # Who writes, and what happens to damaged files
//
//   - served.json: the engine, every few minutes and at its end. One that cannot be read
//     counts as that of a host that was never away.
//   - pod.json: the engine, before each step that it describes. [LoadAll] sets one that
//     cannot be used aside. If the node's key is whole, a new record takes its place that
//     knows only that there may be a device with this key; otherwise the whole
//     directory is set aside.
//   - tailscaled.state: the backend, by its [Store], and [EnsureNodeKey] and [Rekey]
//     before it starts. [StoredKeys] says if no backend could use it; the engine
//     sets it aside then, and the node gets a new key.
//   - netmap: the engine, a while after it has changed. [LendNetmap] lends none that
//     cannot be read or is of another key, and removes it: the node waits for
//     the control plane's.
//   - resolv.conf: the engine, in place, from what the record has of the original: for each
//     new container, and when the tailnet's search domains change. What the pod has written
//     there is replaced then.
//   - *.damaged, *.copied: never written again. They are removed with the pod's directory;
//     a whole directory that was set aside stays until an administrator removes it. [LoadCopied] reads
//     which devices are another host's.
//
// What a kill leaves half written ends in .new, or in .tmp and digits. [LoadAll] removes it,
// or the next write takes its place. A write is not forced to the disk before it returns:
// a power failure may cost the last changes, the end of a process does not. The keys are
// forced to the disk a second later.
//
// # The version of a record
//
// recordVersion goes up only if an older program would do harm with a newer record, or a
// newer one with an older record: a file of another version is set aside, not read. A new
// field does not ask for it as long as its zero value, left out of the JSON, means what
// the version before did. An older program ignores a field that it does not know,
// and drops it when it next writes the record.
//
// # Changes are steps
//
// The engine makes a step of each change that outlives the process. A type that changes
// what is on disk by itself has a [Take] for that; all else that does is a function, and
// its caller takes the step. A test of the engine reads this source and holds both.
//
// What this package does not do: it runs no backend, asks no tailnet and no runtime, and
// knows nodes only by their files. Its goroutines wait for the lock or have the kernel
// write what is in its cache; none changes a file.
package podstate
