/** Several connections join into one link: the sender connects them, and the cache collects them. */
import { randomBytes } from 'node:crypto'
import { Fault } from '../fault.ts'
import { encodeFrame } from '../format/frame.ts'
import { encodePreamble } from '../format/preamble.ts'
import { JOIN_TOKEN_BYTES, type Join } from '../format/stripes.ts'
import { connectEndpoint, type Endpoint } from './endpoint.ts'
import { accepting, frameReader } from './frames.ts'
import type { Link } from './link.ts'
import type { TargetLink } from './resuming-receiver.ts'
import { stripedLink } from './striped-link.ts'
import { abortWith, type Deferred, defer } from './wait.ts'

/** As `connectEndpoint`, over `count` connections that look like one link. */
export function connectMany(count: number, endpoint: Endpoint, timeoutMs: number, signal: AbortSignal): Promise<Link> {
  if (count === 1) return connectEndpoint(endpoint, timeoutMs, signal)
  return connectJoined(count, (stop) => connectEndpoint(endpoint, timeoutMs, stop, true), signal)
}

/**
 * One link over `count` connections to a cache. Throws what `connect` throws, and what the cache refuses with at the
 * first read.
 */
export async function connectJoined(
  count: number,
  connect: (signal: AbortSignal) => Promise<Link>,
  signal: AbortSignal,
): Promise<Link> {
  const token = randomBytes(JOIN_TOKEN_BYTES)
  const failed = new AbortController()
  const release = abortWith(failed, signal)
  const links: Link[] = []
  const connectOne = async (_: unknown, index: number): Promise<void> => {
    const link = await connect(failed.signal)
    links.push(link)
    const frame = encodeFrame({ type: 'join', token, index, count })
    // One that breaks here breaks the link over all of them: the session may try another.
    await link.outlet.send(Buffer.concat([encodePreamble(), frame])).catch(() => {})
  }
  const all = Array.from({ length: count }, connectOne)
  await Promise.all(all.map((one) => one.catch((reason: unknown) => failed.abort(reason))))
  release()
  if (!failed.signal.aborted) return stripedLink(links, nameOf(links), joined)
  for (const link of links) link.destroy()
  throw failed.signal.reason
}

const greeting = accepting('hello')
const answers = accepting('joined', 'refused')

/** Waits until a connection has joined the others. Throws the cache's refusal. */
async function joined(link: Link): Promise<void> {
  const reader = frameReader(link.inlet)
  await reader.expect(greeting)
  const frame = await reader.expect(answers)
  if (frame.type === 'joined') return
  throw new Fault(frame.code, `the target refused one of several connections: ${frame.reason}`)
}

/** A quarter of a cache's connections: the others are for those that are complete. */
const MOST_WAITING = 64

/** Connections with one token. */
interface Group {
  /** By their index; undefined where one has not come yet. */
  members: (TargetLink | undefined)[]
  /** Resolved when all have come; rejected when the group is given up. */
  complete: Deferred<void>
  timer: NodeJS.Timeout
}

/** Connections to a cache that wait for those that they belong to. */
export class ConnectionGroups {
  readonly #timeoutMs: number
  readonly #onComplete: (link: Link, count: number, source: string) => void
  /** By the token, in hexadecimal; the oldest first. */
  readonly #groups = new Map<string, Group>()

  /**
   * The connections of a group have `timeoutMs` to come. `onComplete` gets the link over all of them, their number,
   * and the source of the last. When too many wait, the oldest group is given up.
   */
  constructor(timeoutMs: number, onComplete: (link: Link, count: number, source: string) => void) {
    this.#timeoutMs = timeoutMs
    this.#onComplete = onComplete
  }

  /**
   * Adds a connection from `source` to the group that its `join` frame names. Resolves when all are here, and the
   * link over them is given away. Throws `TIMEOUT` if they do not come, `LIMIT` where too many wait, and `FORMAT` for
   * a connection that does not belong to the others, which are not disturbed.
   */
  async join({ token, index, count }: Join, member: TargetLink, source: string): Promise<void> {
    const key = token.toString('hex')
    const group = this.#groups.get(key) ?? this.#begin(key, count)
    if (group.members.length !== count || group.members[index] !== undefined) {
      throw new Fault('FORMAT', 'a connection that does not belong to those which it joins')
    }
    group.members[index] = member
    if (present(group).length < count) {
      this.#makeRoom(key)
      return group.complete.promise
    }
    this.#settle(key, group)
    const links: Link[] = []
    for (const each of present(group)) each.give((link) => links.push(link))
    const joined = encodeFrame({ type: 'joined' })
    // A connection that is broken breaks the link over all of them.
    await Promise.all(links.map((link) => link.outlet.send(joined).catch(() => {})))
    this.#onComplete(stripedLink(links, nameOf(links)), count, source)
  }

  #begin(key: string, count: number): Group {
    const reason = new Fault('TIMEOUT', `only some of ${count} connections came within ${this.#timeoutMs / 1000} s`)
    const group: Group = {
      members: Array.from({ length: count }, () => undefined),
      complete: defer(),
      timer: setTimeout(() => this.#settle(key, group, reason), this.#timeoutMs).unref(),
    }
    this.#groups.set(key, group)
    return group
  }

  #settle(key: string, { complete, timer }: Group, reason?: Fault): void {
    clearTimeout(timer)
    this.#groups.delete(key)
    if (reason === undefined) complete.resolve()
    else complete.reject(reason)
  }

  /** Gives up the oldest groups, but not the one of `spared`, while too many connections wait. */
  #makeRoom(spared: string): void {
    for (const [key, group] of this.#groups) {
      if (this.#waiting() <= MOST_WAITING) return
      if (key === spared) continue
      this.#settle(key, group, new Fault('LIMIT', `${MOST_WAITING} connections wait for those which they join`))
    }
  }

  #waiting(): number {
    let count = 0
    for (const group of this.#groups.values()) count += present(group).length
    return count
  }
}

function present({ members }: Group): TargetLink[] {
  return members.filter((each) => each !== undefined)
}

function nameOf(links: readonly Link[]): string {
  return `${links[0]?.peer} (${links.length} connections)`
}
