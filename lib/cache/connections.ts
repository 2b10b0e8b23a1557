/**
 * The connections of a server, and which of them goes when there are too many.
 *
 * Nobody can keep others out by being there. A connection that has said nothing yet gives way to a new one, the oldest of
 * the peer that has most of them first; one that is answered gives way when nothing has moved on it for a while. So a peer has what is its
 * share whatever others do, and whoever speaks is heard. A connection on which nothing moves for as long as its work allows is closed.
 *
 * Refused: a fixed number for each peer. Many honest hosts may come from one address (a gateway, an ssh), and one that is alone
 * may as well have all.
 */
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import type { IdleTimer } from './idle.ts'

/** What a connection is for, as far as its place goes. */
export type Phase =
  /** It has not said its first word: it gives way at once. */
  | 'silent'
  /** Something is on its way. */
  | 'moving'
  /** It waits for something that others do. */
  | 'waiting'
  /** The only copy of a process may hang on it: it never gives way. */
  | 'holding'

export interface Connection {
  /** What is held for it goes with it, at once. */
  onClose(release: () => void): void
  /** Tells the peer why, before it is closed: it gets a moment for it. */
  beforeClose(say: (reason: Fault) => Promise<void>): void
  /** Bytes came, or were taken by the peer. */
  moved(bytes: number): void
  /** What it is for from now on; `limitMs`: how long nothing may move, or for good if undefined. Throws `LIMIT` where a first word finds no place. */
  enter(phase: Phase, limitMs?: number): void
  /** It is over. */
  leave(): void
}

export interface Connections {
  /** Those that have not spoken, and the others; a group that carries one stream counts as many. */
  readonly counts: { silent: number; answered: number }
  /** `source`: whose share it counts to. `close` is called when it has to go. */
  add(source: string, close: (reason: Fault) => void, count?: number): Connection
  /**
   * Makes one give way on which nothing has moved for a while, for the memory that it holds. One that only waits goes when `waiting`: it
   * has none for images. Returns whether there was one.
   */
  relieve(waiting: boolean): boolean
  /** Closes all. */
  close(reason: Fault): void
}

interface Entry {
  source: string
  count: number
  phase: Phase
  limitMs: number
  /** By performance.now(): when it entered its phase, or something moved. */
  since: number
  unseen: number
  close(reason: Fault): void
  say: ((reason: Fault) => Promise<void>) | undefined
  releases: (() => void)[]
}

export interface ConnectionLimits {
  /** At a time, of each sort. */
  most: number
  /** How long a connection may take to say its first word, ms. */
  silentMs: number
  /** How long nothing must have moved on one that gives way, and on one that only waits, ms. */
  stillMs?: number
  waitedMs?: number
  /** Told of each that comes and goes. */
  quiet?: IdleTimer
}

/** Nothing has moved for so long: a link that stumbles, or a criu that thinks, takes less. */
const STILL_MS = 5000
/** The same for one that only waits. */
const WAITED_MS = 60_000
/** Fewer bytes are no progress: the ends of a conversation tell each other that they are alive. */
const LEAST_MOVED = 4096
const LOOK_MS = 250
const LAST_WORD_MS = 500

export function openConnections({
  most,
  silentMs,
  stillMs = STILL_MS,
  waitedMs = WAITED_MS,
  quiet,
}: ConnectionLimits): Connections {
  const entries = new Set<Entry>()
  const isSilent = ({ phase }: Entry): boolean => phase === 'silent'
  const isAnswered = ({ phase }: Entry): boolean => phase !== 'silent'
  let timer: NodeJS.Timeout | undefined

  function countOf(which: (entry: Entry) => boolean): number {
    let count = 0
    for (const entry of entries) if (which(entry)) count += entry.count
    return count
  }

  /** Of those that may go: of the source that has most, the one that has waited longest. */
  function victim(which: (entry: Entry) => boolean): Entry | undefined {
    const shares = new Map<string, number>()
    for (const entry of entries) {
      if (which(entry)) shares.set(entry.source, (shares.get(entry.source) ?? 0) + entry.count)
    }
    let found: Entry | undefined
    const share = ({ source }: Entry): number => shares.get(source) ?? 0
    for (const entry of entries) {
      if (!which(entry)) continue
      const more = found === undefined ? 1 : share(entry) - share(found) || found.since - entry.since
      if (more > 0) found = entry
    }
    return found
  }

  function remove(entry: Entry): void {
    if (!entries.delete(entry)) return
    if (entries.size === 0) {
      clearInterval(timer)
      timer = undefined
    }
    quiet?.left()
    for (const release of entry.releases.splice(0)) release()
  }

  function drop(entry: Entry, reason: Fault): void {
    const { say, close } = entry
    remove(entry)
    if (say === undefined) return void close(reason)
    const said = Promise.race([say(reason), setTimeout(LAST_WORD_MS, undefined, { ref: false })])
    said.catch(() => {}).finally(() => close(reason))
  }

  function mayGo(entry: Entry): boolean {
    const still = performance.now() - entry.since
    return entry.phase === 'moving' ? still >= stillMs : entry.phase === 'waiting' && still >= waitedMs
  }

  function relieve(waiting: boolean): boolean {
    const still = victim((entry) => mayGo(entry) && (waiting || entry.phase === 'moving'))
    if (still !== undefined) drop(still, new Fault('TIMEOUT', 'nothing moved, and others needed the room'))
    return still !== undefined
  }

  function closeStill(): void {
    const now = performance.now()
    for (const entry of [...entries]) {
      if (now - entry.since <= entry.limitMs) continue
      const long = `for ${entry.limitMs / 1000} s`
      // It is read at the other end, which may have a longer one.
      const what = isSilent(entry) ? `the client said nothing ${long}` : `nothing moved ${long} (the cache's --timeout)`
      drop(entry, new Fault('TIMEOUT', what))
    }
  }

  return {
    get counts() {
      return { silent: countOf(isSilent), answered: countOf(isAnswered) }
    },
    add(source, close, count = 1) {
      const since = performance.now()
      const entry: Entry = {
        source,
        count,
        phase: 'silent',
        limitMs: silentMs,
        since,
        unseen: 0,
        close,
        say: undefined,
        releases: [],
      }
      while (countOf(isSilent) + count > most) {
        const oldest = victim(isSilent)
        if (oldest === undefined) break
        drop(oldest, new Fault('LIMIT', 'the client said nothing, and others came'))
      }
      entries.add(entry)
      quiet?.came()
      timer ??= setInterval(closeStill, LOOK_MS).unref()
      return {
        onClose: (release) => void entry.releases.push(release),
        beforeClose(say) {
          entry.say = say
        },
        moved(bytes) {
          entry.unseen += bytes
          // Dripping bytes do not make a first word.
          if (entry.unseen < LEAST_MOVED || isSilent(entry)) return
          entry.unseen = 0
          entry.since = performance.now()
        },
        enter(phase, limitMs = Number.POSITIVE_INFINITY) {
          while (isSilent(entry) && countOf(isAnswered) + entry.count > most) {
            if (!relieve(true)) throw new Fault('LIMIT', `${most} connections are answered already`)
          }
          Object.assign(entry, { phase, limitMs, since: performance.now(), unseen: 0 })
        },
        leave: () => remove(entry),
      }
    },
    relieve,
    close(reason) {
      for (const entry of [...entries]) {
        remove(entry)
        entry.close(reason)
      }
    },
  }
}
