// SPDX-License-Identifier: BSD-3-Clause

// Package engine runs one Tailscale node per pod.
//
//	Attach ──▶ record on disk ──▶ link (no address; AttachEmpty: begun) ──▶ return
//	                                        │
//	              ┌──────────── node.run ◀──┘   serve; back off; repeat
//	              │
//	            serve   [no node key? a fresh auth key] ─▶ backend ─▶ watch
//	                                                          │
//	   pod ◀── ts0 ◀── Router.Set ◀── wgengine ◀── netmap ◀───┘
//
// Packets between two pods of this engine that are each other's peers, and whose
// filters agree, go from link to link without WireGuard: see local.go.
//
// A node is named by its pod's UID: it keeps its key, its addresses and its
// UDP port when the sandbox is created again, and when this process restarts.
// [Engine.Attach], or AttachEmpty, and [Engine.Detach] make and remove the link and the
// running backend, [Engine.Forget] ends the identity. [Engine.Sync] is Attach and Forget in a
// loop; there is no other recovery.
//
// # Words
//
//	host      the computer this process runs on, a node of Kubernetes
//	node      a node of the tailnet: one pod's, the type node
//	device    a node as Tailscale's API and admin console have it
//	sandbox   what the runtime makes for a pod; a pod may have several, one after the other
//	link      the veth pair: ts0 in the pod, and its host end, vetht…
//	begun     a link whose host end is down and lacks the tc filter; whole is one that lacks nothing
//	empty     a sandbox that has no container yet
//	filters   the tc filter and the qdisc on the host end, which drop all that the host's
//	          stack would get or send
//	fence     rules and routes in a pod with an exit node, past which nothing leaves
//	guard     restores a link that is changed from outside
//	backend   tailscale.com's LocalBackend of one node
//	session   the time of one backend, from start to close
//	neighbour a node of this engine, as others of it see it: packets to it may skip WireGuard
//	hold      delays what a pod sends for a moment, so that of two nodes of this engine one begins the handshake
//	step      a change that outlives this process: the fault table kills it before and after each
//	claim     the lock on the state directory
//	identity  the device of a workload's pod, which all hosts of a cluster can find in a store
//	holder    the pod, and its host, that has an identity
//	lease     how long a holder keeps its identity without renewing it
//
// # Packages
//
//	engine     the nodes' life: start, recovery, end; what a node is told, and tells
//	tailnet    the API of a tailnet: keys, devices
//	podstate   what is on disk, and the lock on it
//	podnet     the kernel side of one pod: link, packets, routes, rules
//	hostnet    the host's network: one watch of it for all nodes
//	measure    the figures of the nodes, as values
//	exporter   these figures for Prometheus
//
// # From a sandbox to a running node
//
// Who calls whom, and in which file:
//
//	Engine.Attach     attach.go     finds the pod's node, or makes a new one; AttachEmpty only begins its link
//	node.attach       node.go       record, link, then a goroutine for run
//	node.run          node.go       the one loop that tries again; setPending says why
//	node.complete     begunlink.go  completes a begun link, while what follows goes on
//	node.serve        serve.go      serveOnce, and once more without requested tags if they are refused
//	node.serveOnce    serve.go      which keys, which auth key
//	node.openSession  backend.go    the link's Device, and a backend on it: podEnd, openBackend
//	session.run       session.go    starts the backend, and closes it at the end
//	session.loop      serve.go      one event at a time: wait, hear, publish
//	session.publish   condition.go  ready makes it Running; setCondition says what is amiss
//
// # States of a node
//
//	              attach, resume                  ready
//	  ╭▶ Stopped ────────────────▶   Pending   ──────────▶ Running
//	  │     │    ◀────────────────      ▲      ◀──────────    │
//	  │     │     detach, or run:       │    run tries again, │
//	newNode │     the netns is gone     │    or setCondition  │
//	        │                           │ attach:             │
//	        │ forgetLocked              │ the pod came back   │ forgetLocked
//	        ╰───────────────────▶    Leaving   ◀──────────────╯
//	                                    │ it has left the tailnet
//	                                    ▼
//	                                   gone
//
// Every way from one state to another, with the function that takes it:
//
//	from     to       by            when
//	none     Stopped  newNode       the pod is new, or its record lies on disk
//	any      Pending  attach        the sandbox has its link: the first, another one, or one of a pod that was to leave
//	Stopped  Pending  resume        an earlier process served it
//	Stopped  Leaving  resume        an earlier process had it leave
//	Pending  Running  ready         ts0 has its addresses, and peers can reach it
//	Running  Pending  hear          its backend has stopped by itself
//	Running  Pending  setCondition  it is served, but cut off, locked out or refused
//	any      Pending  setPending    a session has ended with an error, or did not begin: run tries again
//	Pending  Pending  takeIdentity  another host has its workload's identity
//	any      Stopped  detachLocked  the runtime stopped the sandbox, or removed it while its pod has another or may get one
//	any      Stopped  run           the netns is gone, and the runtime has not said why: awaitEnd finds out
//	Stopped  Stopped  lookAgain     the runtime lists the sandbox as ended: it is kept for a while
//	Stopped  Running  lookAgain     the netns is there after all: run serves it again
//	any      Leaving  leave         the pod is gone for good: see forgetLocked
//	Leaving  Leaving  leave         the device could not be deleted: it is tried again
//	Leaving  gone     retireAfter   it has left the tailnet, and its state on disk is deleted
//	Leaving  gone     letAlone      the device is another host's: the state is set aside
//	Stopped  gone     attach        a directory of the pod is there that cannot be used, or the caller of attach has given up
//	Stopped  gone     undo          the first attach has failed
//
// A node is in the engine's map from newNode to gone. What it does, run or leave, is one
// thing at a time (task). A pod that runs already and cannot be attached has no node: it
// is shown as Pending (noteRefusal) and tried again (attachAll).
//
// That a sandbox has ended is not always said by the runtime. What is known of it is in
// sandboxEnd, which decides between waiting, serving the node again and having it leave.
//
// # Goroutines
//
//   - one per node that is up or leaves, node.run or node.leave, one after
//     the other and never both (task): what serve opens, serve closes;
//   - one per node that watches its backend, started and joined by serve;
//   - one per node whose pod has its LocalAPI, and one per connection to that,
//     started and joined by run;
//   - one per peer with which the handshake is repeated after a restart, for a few
//     seconds;
//   - one per sandbox that has gone without a runtime event, until that is certain;
//   - one per node that waits for the name it asked for, half an hour at most;
//   - one per session of a workload's node, which renews its identity;
//   - one per node whose record could not be written, until it can;
//   - one per list of the runtime, which attaches what is on it;
//   - one per tailnet that sweeps up devices of hosts that died, hourly;
//   - one per control server other than Tailscale's, which asks it every few minutes
//     whether the devices are still there;
//   - one per tailnet that has auth keys minted ahead, joined after the state directory
//     was given back;
//   - one that hears of changes of the host's interfaces, for all backends (package hostnet);
//   - one that hears of changes of the pods' links, for all nodes, and one per node
//     that is up which completes its link and restores it, started and joined by run;
//   - one that hears of changes of the pods' nftables, once a pod has some of the engine's;
//   - one that waits for the state directory while another process has it;
//   - one that calls [Config.OnChange], if it is set;
//   - for a node whose pod asked for DNS, started and joined by serve: one that opens
//     its sockets, one per socket, and one per query;
//   - one per call that takes no context and that a watchdog bounds (within);
//   - those of tailscale.com and wireguard-go, about 36 per backend.
//
// # Locks
//
// These are taken from the top down: who holds one takes none of a line above it, nor
// another of the same line.
//
//	the backend's      those of tailscale.com: with some of them held, patientRouter.Set waits
//	                   for the guard. Who holds one of those below calls no backend
//	node.op            attach, detach and forget of one pod, and its record, take turns:
//	                   held across local work, never across the network
//	guarded.linking    held while the link is made, completed or restored
//	nodeDNS.mu         held across the write of resolv.conf and its preparation in the pod
//	Engine.mu          the map of nodes, and those that are attached late
//	published.mu
//	task.mu, guarded.mu, serving.mu, identityLease.mu, way.mu, newsQueue.mu
//
// Where nothing else is said they are held across no I/O. A mutex guards the fields of
// its own struct; what node.op guards says so at the field. Nobody holds
// locks of two nodes at once.
//
// Apart from these, wgEngine.selfMu and then neighbours.mu, in this order, guard which
// node has which key. Nothing else is done under them. Any other mutex guards the fields
// of its own struct, but for podstate.Store.mu, held across the write of the file, and
// wgEngine.resetting, held while a peer is reset.
//
// # What is measured
//
// A few counters of a node's life are kept always (tally). All else that package
// exporter shows is read when somebody asks ([Engine.Measures]): there is no
// goroutine for it, and the packets' way has no counter of its own for it.
//
// # What lies on disk
//
// One directory per pod below [Config.StateDir], by UID: its record, its node's keys and
// the last netmap. Package podstate has the layout, file by file, and what becomes of
// damage. All that changes what outlives this process is a step: see steps.go.
//
// A [Claim] keeps every process but one out of that directory. Run gives it back
// last, so that the next process, which may have waited for it, finds links,
// ports and records that nobody else acts on.
//
// The keys of a workload's node are on the disk of the host that holds its identity,
// and on no other: see [Identity].
//
// What this package does not do: it knows no container runtime and no Kubernetes API. It
// runs neither Serve nor Tailscale SSH nor a PeerAPI server for a pod, since all three
// would act in this process's namespaces. What a pod forwards as a subnet router or exit
// node, its own kernel forwards. It changes nothing outside the pod's netns and its own
// end of the link.
package engine
