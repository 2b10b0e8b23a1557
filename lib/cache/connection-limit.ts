/**
 * The table of a server's connections, and the rule by which it closes one when there are too many.
 *
 * No client can keep others out by occupying connections. A connection that has sent no frame yet is closed for a new
 * one: the oldest of the origin that has most of them. A connection that has sent one is closed when room is needed and
 * no bytes have moved on it for a while. So every origin gets its share, whatever others do, and a client that sends
 * something is answered. A connection on which nothing moves for as long as its work allows is closed in any case.
 *
 * Refused: a fixed limit for each origin. Many honest hosts may share one address (a gateway, an ssh server), and an
 * origin that is alone may use the whole table.
 */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import type { IdleTimer } from './idle.ts'

/** What a connection is doing, as far as the table needs to know. */
export type Phase =
  /** The client has not sent its first frame: the connection is closed first. */
  | 'silent'
  /** Data is on its way. */
  | 'moving'
  /** The connection waits for something that others do. */
  | 'waiting'
  /** The only copy of a process may depend on it: it is never closed to make room. */
  | 'holding'

/** One entry of the table, as the code that serves the connection sees it. */
export interface Connection {
  /** `release` frees what is held for this connection. It is called as soon as the connection leaves the table. */
  onClose(release: () => void): void
  /** `send` tells the peer the reason before the table closes the connection, within 500 ms. */
  beforeClose(send: (reason: Fault) => Promise<void>): void
  /** Notes that bytes were received, or taken by the peer. */
  moved(bytes: number): void
  /**
   * Changes the phase. `limitMs`: how long nothing may move; without it there is no limit. Throws `LIMIT` when a
   * connection leaves `silent` and the table is full.
   */
  enter(phase: Phase, limitMs?: number): void
  /** Takes the connection out of the table. */
  leave(): void
}

/** What the table knows of a connection. */
interface Entry {
  readonly origin: string
  /** Sockets that carry it: more than one for a striped link. */
  readonly count: number
  phase: Phase
  limitMs: number
  /** By performance.now(): when it entered its phase, or when something last moved. */
  since: number
  /** Bytes moved since then. */
  bytes: number
  readonly close: (reason: Fault) => void
  sendReason: ((reason: Fault) => Promise<void>) | undefined
  readonly releases: (() => void)[]
}

export interface ConnectionLimits {
  /** Most connections that have sent no frame yet, and most of those that have. */
  most: number
  /** How long a connection may take for its first frame, ms. */
  silentMs: number
  /** How long nothing must have moved on a moving connection before it may be closed to make room, ms. */
  stillMs?: number
  /** The same for one that only waits, ms. */
  waitedMs?: number
  /** Is told of every connection that is added and removed. */
  quiet?: IdleTimer
}

/** A link that stumbles, or a criu that computes, stands still for less. */
const STILL_MS = 5000
const WAITED_MS = 60_000
/** Fewer bytes are no progress: both ends send each other small signs of life. */
const LEAST_MOVED = 4096
const CHECK_MS = 250
const LAST_WORD_MS = 500

export class Connections {
  readonly #limits: ConnectionLimits & { stillMs: number; waitedMs: number }
  readonly #entries = new Set<Entry>()
  /** Runs while there are connections. */
  #timer: NodeJS.Timeout | undefined

  constructor(limits: ConnectionLimits) {
    this.#limits = { stillMs: STILL_MS, waitedMs: WAITED_MS, ...limits }
  }

  /** Connections that have sent no frame yet, and all others. A striped link counts as many as it has sockets. */
  get counts(): { silent: number; answered: number } {
    const counts = { silent: 0, answered: 0 }
    for (const entry of this.#entries) counts[isSilent(entry) ? 'silent' : 'answered'] += entry.count
    return counts
  }

  /**
   * Adds a connection; silent ones are closed where there are too many. `origin`: the user or address whose share it
   * counts to. `close` is called when the table closes it.
   */
  add(origin: string, close: (reason: Fault) => void, count = 1): Connection {
    const { most, silentMs } = this.#limits
    const [phase, since] = ['silent', performance.now()] as const
    const counters = { phase, limitMs: silentMs, since, bytes: 0 }
    const entry: Entry = { origin, count, ...counters, close, sendReason: undefined, releases: [] }
    while (this.counts.silent + count > most) {
      const oldest = this.#candidate(isSilent)
      if (oldest === undefined) break
      this.#drop(oldest, new Fault('LIMIT', 'the client said nothing, and others came'))
    }
    this.#entries.add(entry)
    this.#limits.quiet?.came()
    this.#timer ??= setInterval(() => this.#closeStill(), CHECK_MS).unref()
    return {
      onClose: (release) => void entry.releases.push(release),
      beforeClose(send) {
        entry.sendReason = send
      },
      moved(bytes) {
        entry.bytes += bytes
        // Bytes that trickle in do not count as a first frame.
        if (entry.bytes < LEAST_MOVED || isSilent(entry)) return
        entry.bytes = 0
        entry.since = performance.now()
      },
      enter: (to, limitMs = Number.POSITIVE_INFINITY) => this.#enter(entry, to, limitMs),
      leave: () => this.#remove(entry),
    }
  }

  /**
   * Closes one connection on which nothing has moved for a while, for the memory that it holds. Connections that only
   * wait are included when `waiting`: they hold none for images. Returns whether there was one.
   */
  relieve(waiting: boolean): boolean {
    const still = this.#candidate((entry) => this.#mayClose(entry) && (waiting || entry.phase === 'moving'))
    if (still !== undefined) this.#drop(still, new Fault('TIMEOUT', 'nothing moved, and others needed the room'))
    return still !== undefined
  }

  /** Closes all connections. */
  close(reason: Fault): void {
    for (const entry of [...this.#entries]) {
      this.#remove(entry)
      entry.close(reason)
    }
  }

  #enter(entry: Entry, phase: Phase, limitMs: number): void {
    const { most } = this.#limits
    while (isSilent(entry) && this.counts.answered + entry.count > most) {
      if (!this.relieve(true)) throw new Fault('LIMIT', `${most} connections are answered already`)
    }
    Object.assign(entry, { phase, limitMs, since: performance.now(), bytes: 0 })
  }

  /** The connection to close: of the origin that has most of those that match, the one whose `since` is the oldest. */
  #candidate(matches: (entry: Entry) => boolean): Entry | undefined {
    const shares = new Map<string, number>()
    for (const entry of this.#entries) {
      if (matches(entry)) shares.set(entry.origin, (shares.get(entry.origin) ?? 0) + entry.count)
    }
    const share = ({ origin }: Entry): number => shares.get(origin) ?? 0
    let found: Entry | undefined
    for (const entry of this.#entries) {
      if (!matches(entry)) continue
      const more = found === undefined ? 1 : share(entry) - share(found) || found.since - entry.since
      if (more > 0) found = entry
    }
    return found
  }

  #remove(entry: Entry): void {
    if (!this.#entries.delete(entry)) return
    if (this.#entries.size === 0) {
      clearInterval(this.#timer)
      this.#timer = undefined
    }
    this.#limits.quiet?.left()
    for (const release of entry.releases.splice(0)) release()
  }

  #drop(entry: Entry, reason: Fault): void {
    const { sendReason, close } = entry
    this.#remove(entry)
    if (sendReason === undefined) return void close(reason)
    const sent = Promise.race([sendReason(reason), setTimeout(LAST_WORD_MS, undefined, { ref: false })])
    sent.catch(() => {}).finally(() => close(reason))
  }

  #mayClose({ phase, since }: Entry): boolean {
    const still = performance.now() - since
    const { stillMs, waitedMs } = this.#limits
    return phase === 'moving' ? still >= stillMs : phase === 'waiting' && still >= waitedMs
  }

  #closeStill(): void {
    const now = performance.now()
    for (const entry of [...this.#entries]) {
      if (now - entry.since <= entry.limitMs) continue
      const long = `for ${entry.limitMs / 1000} s`
      // The peer reads this message, and may have a longer --timeout of its own.
      const what = isSilent(entry) ? `the client said nothing ${long}` : `nothing moved ${long} (the cache's --timeout)`
      this.#drop(entry, new Fault('TIMEOUT', what))
    }
  }
}

function isSilent({ phase }: Entry): boolean {
  return phase === 'silent'
}
