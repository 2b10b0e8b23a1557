/**
 * The dumps with `--remote` on this host: which connection belongs to which dump, when a dump is over, and what it
 * reads.
 *
 * CRIU begins with the id of its snapshot (its `-D`), which it pushes to the list, and then has a connection for each
 * image. The kernel tells whose connection it is. A dump sends FINISH, whether it was good or not: it is good only with
 * inventory.img. A dump that was killed before it could send FINISH is good if it has killed its tasks, which it does
 * when everything is written: there is no other copy. A pre-dump sends nothing at its end, so it is over when its criu
 * has ended, or when another dump begins. Either way, connections that came before are taken first, and images that are
 * still being written are waited for.
 */

import { closedGate, type Gate } from '../criu/action-script.ts'
import { type CriuCommand, readCriuCommand } from '../criu/command-line.ts'
import type { IncomingDump } from '../criu/incoming-dump.ts'
import type { PageServer } from '../criu/page-server.ts'
import { Fault } from '../fault.ts'
import { type ImageName, printable, type SnapshotId } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { endOf, memoryOfTree } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { ProxyChains, TakenChain } from '../precopy/chains.ts'
import type { Delivery, DeliveryContext, RoundRequest } from '../precopy/delivery.ts'
import { nextLayer, type PreCopyChain } from '../precopy/send-round.ts'
import { rejectAfter } from '../stream/wait.ts'
import { Clients, ofAncestor } from './clients.ts'
import { Dump, type ReadableRound } from './dump.ts'
import { type RemoteImages, roundOf } from './images.ts'
import { answerRead, DUMP_SOCKET, newReader, readIds, readRequest } from './local-wire.ts'
import { protocolFault } from './messages.ts'

export interface RemoteDumpsOptions {
  /** How dumps are handed over, and what that needs; the socket is in the directory of our action script. */
  delivery: Delivery
  context: DeliveryContext
  chains: ProxyChains
  newId: () => SnapshotId
  /** Sends a pre-dump and keeps the chain as that of `images`. Throws what went wrong; the chain is over then. */
  sendRound(taken: TakenChain, source: PageServer, round: RoundRequest & { images: string }): Promise<void>
  /** Tells the target that no layer follows, if it can be told. */
  abandon(chain: PreCopyChain): Promise<void>
  /** Waits for the work at the end, and reports its failure. */
  track(work: Promise<void>, what: string): void
}

/** Stands for the images directory of a round, so that a chain by `--remote` is not taken for one of another kind. */
const REMOTE = 'criu --remote'

export class RemoteDumps {
  readonly #options: RemoteDumpsOptions
  readonly #clients: Clients
  /** By the number of their criu. */
  readonly #dumps = new Map<number, Dump>()
  /** What can be read of the rounds of each chain. */
  readonly #roundsOf = new WeakMap<PreCopyChain, ReadableRound[]>()
  /** The last request of each process: requests of one process are handled in the order in which it sends them. */
  readonly #requests = new Map<number, Promise<void>>()

  /** Listens at the socket in the directory. Throws `EXISTS` or `IO`. */
  constructor(options: RemoteDumpsOptions) {
    this.#options = options
    const { directory, report } = options.context
    this.#clients = new Clients(directory, DUMP_SOCKET, report, (socket, pid) => this.#handleInOrder(socket, pid))
  }

  close(): void {
    this.#clients.close()
    for (const dump of this.#dumps.values()) {
      // Nothing else ends a dump that waits for its first image.
      if (dump.images.names.size === 0) dump.images.destroy(proxyStopped())
      this.#release(dump)
    }
  }

  #handleInOrder(socket: Fd, pid: number): Promise<void> {
    const handled = (this.#requests.get(pid) ?? Promise.resolve()).then(() => this.#handle(socket, pid))
    const settled = handled
      .catch(() => {})
      .finally(() => {
        if (this.#requests.get(pid) === settled) this.#requests.delete(pid)
      })
    this.#requests.set(pid, settled)
    return handled
  }

  async #handle(socket: Fd, pid: number): Promise<void> {
    let isOpen = true
    try {
      const request = await readRequest(socket)
      if (request === undefined) return
      if (request.kind === 'push') {
        const snapshot = (await readIds(socket)).at(-1)
        if (snapshot === undefined) throw protocolFault('a list without a snapshot id')
        this.#begin(pid, snapshot)
      } else if (request.kind === 'finish') {
        if (request.of === 'dump') this.#dumpOf(pid)?.images.end()
      } else if (request.kind === 'write') {
        const dump = this.#dumpOf(pid, request.snapshot) ?? this.#begin(pid, request.snapshot)
        if (request.snapshot !== dump.snapshot) throw overwriting(request, dump)
        isOpen = false
        dump.images.take(request.name, request.append, socket)
      } else {
        const dump = this.#dumpOf(pid)
        isOpen = false
        // Not awaited: a read that waits until the round before is sealed must not hold up the next request.
        void answerRead(socket, dump?.answerTo(request), dump?.reader ?? newReader()).catch((error: unknown) =>
          this.#clients.failed('a read of criu --remote', error),
        )
      }
    } finally {
      if (isOpen) closeFd(socket)
    }
  }

  #dumpOf(pid: number, snapshot?: string): Dump | undefined {
    const found = ofAncestor(pid, (at) => this.#dumps.get(at))
    if (found !== undefined) return found
    // A child that has written and is gone: only the -D tells to which dump it belonged.
    const same = [...this.#dumps.values()].filter((dump) => dump.snapshot === snapshot)
    const open = same.filter(({ images }) => !images.isOver)
    if (open.length > 1) {
      const id = printable(snapshot ?? '')
      const fault = protocolFault(`an image of ${id}, which two dumps at a time have as their -D`)
      for (const { images } of open) images.destroy(fault)
    }
    return open.at(-1) ?? same.at(-1)
  }

  /** Begins a dump. An earlier one of the same criu or of the same tree is over, and is waited for. */
  #begin(pid: number, snapshot: string): Dump {
    const command = readCriuCommand(pid)
    const earlier = [...this.#dumps.values()].filter(
      (dump) => dump.pid === pid || (command !== undefined && dump.command?.tree === command.tree),
    )
    for (const dump of earlier) dump.end()
    const dump = new Dump(pid, snapshot, command)
    const forwarded = Promise.all(earlier.map(({ settled }) => settled)).then(() => {
      if (!this.#clients.isOpen) throw proxyStopped()
      return dump.isRound ? this.#forwardRound(dump) : this.#forwardDump(dump)
    })
    dump.settled = forwarded.finally(() => dump.abort()).catch(() => {})
    for (const each of earlier) this.#release(each)
    this.#dumps.set(pid, dump)
    this.#options.track(forwarded, `the ${dump.isRound ? 'pre-dump' : 'dump'} of ${printable(snapshot)}`)
    void this.#watch(dump)
    return dump
  }

  /** Ends a dump when its criu has ended. */
  async #watch(dump: Dump): Promise<void> {
    const hasEnded = await endOf(dump.pid, dump.criu)
      .then(() => true)
      .catch(() => false)
    if (!hasEnded) return
    await this.#allHandled(dump.pid)
    dump.end()
    await dump.settled
    this.#release(dump)
  }

  #release(dump: Dump): void {
    dump.criu?.close()
    if (this.#dumps.get(dump.pid) === dump) this.#dumps.delete(dump.pid)
  }

  /** Resolves when everything that this process has sent was handled. */
  async #allHandled(pid: number): Promise<void> {
    this.#clients.acceptPending()
    await this.#requests.get(pid)
  }

  /**
   * Takes the chain that the dump goes on with; or a new one, for an id that is on the list already has no second place
   * there.
   */
  async #takeChain({ snapshot }: Dump, tree: number): Promise<TakenChain> {
    const { chains, newId } = this.#options
    const taken = chains.take(tree, REMOTE, newId)
    if (!this.#readable(taken).some((round) => round.snapshot === snapshot)) return taken
    await this.#options.abandon(taken.chain)
    return chains.take(tree, undefined, newId)
  }

  #readable(taken: TakenChain | undefined): readonly ReadableRound[] {
    return (taken && this.#roundsOf.get(taken.chain)) ?? []
  }

  async #forwardRound(dump: Dump): Promise<void> {
    const { tree } = dump.command as CriuCommand
    const taken = await this.#takeChain(dump, tree)
    const rounds = this.#readable(taken)
    const snapshots = dump.setRounds(rounds)
    await this.#options.sendRound(taken, roundOf(dump.images), { tree, images: REMOTE, snapshots })
    this.#roundsOf.set(taken.chain, dump.addTo(rounds))
  }

  async #forwardDump(dump: Dump): Promise<void> {
    const { pid, command, images } = dump
    const { delivery, context, chains, newId } = this.#options
    // It may clear the kernel's marks of changed pages.
    if (command === undefined) chains.breakOff(undefined)
    const taken = command && (await this.#takeChain(dump, command.tree))
    const snapshots = dump.setRounds(this.#readable(taken))
    const gate = closedGate(context.directory, pid, 'pre-dump')
    void images.begun.then(() => gate.remove())
    const isChained = taken !== undefined && taken.chain.under > 0
    const layer = isChained ? nextLayer(taken.chain, true) : undefined
    const id = taken?.chain.id ?? newId()
    let sent = false
    try {
      const bytes = await this.#bytesToCome(gate, images)
      if (!this.#clients.isOpen) throw proxyStopped()
      const criu = this.#incomingDump(dump, gate, bytes)
      sent = await delivery.dump(criu, { id, command, snapshots, layer, chain: taken?.chain }, context)
    } finally {
      gate.remove()
      taken?.end()
      if (!sent && isChained) await this.#options.abandon(taken.chain)
    }
  }

  #incomingDump({ pid, images }: Dump, gate: Gate, bytes: number | undefined): IncomingDump {
    return {
      pid,
      bytes,
      open: () => gate.open(),
      images: (steps) => {
        // When criu is at post-dump everything is written.
        steps?.complete
          .then(() => this.#allHandled(pid))
          .then(() => images.end())
          .catch(() => {})
        return images
      },
      remove: () => gate.remove(),
    }
  }

  /**
   * Waits for the first sign of a dump. Returns the memory of its tasks if criu waits at the gate before it freezes
   * them, and undefined if an image has come. Throws `TIMEOUT`.
   */
  async #bytesToCome(gate: Gate, images: RemoteImages): Promise<number | undefined> {
    const over = new AbortController()
    const silent = rejectAfter(this.#options.delivery.timeoutMs, 'a criu that has connected began no dump', over.signal)
    const held = gate.held.catch(() => undefined)
    const root = await Promise.race([held, images.begun, silent]).finally(() => over.abort())
    return typeof root === 'number' ? memoryOfTree(root) : undefined
  }
}

function proxyStopped(): Fault {
  return new Fault('ABORTED', 'the proxy was stopped')
}

/** The fault for what `--auto-dedup` would do to the dump before. */
function overwriting({ name, snapshot }: { name: ImageName; snapshot: string }, dump: Dump): Fault {
  const whose = `${printable(snapshot)}, and this dump is ${printable(dump.snapshot)}`
  return new Fault('REFUSED', `${name} would be written into ${whose}`, { hint: 'dump without --auto-dedup' })
}
