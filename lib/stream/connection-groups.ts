/** Several connections join into one link: those who connect them, and the cache that collects them. */
import { randomBytes } from 'node:crypto'
import { Fault } from '../fault.ts'
import { encodePreamble } from '../format/preamble.ts'
import { JOIN_TOKEN_BYTES, type Join } from '../format/stripes.ts'
import { encodeFrame } from '../format/wire.ts'
import { connectEndpoint, type Endpoint } from './endpoint.ts'
import { accepting, frameReader } from './frames.ts'
import type { Link } from './link.ts'
import type { TargetLink } from './resuming-receiver.ts'
import { stripedLink } from './striped-link.ts'

/** As `connectEndpoint`, over `count` connections where they are more than one. */
export function connectMany(count: number, endpoint: Endpoint, timeoutMs: number, signal: AbortSignal): Promise<Link> {
  if (count === 1) return connectEndpoint(endpoint, timeoutMs, signal)
  return connectJoined(count, (stop) => connectEndpoint(endpoint, timeoutMs, stop, true), signal)
}

/** One link over `count` connections to a cache. Throws what `connect` throws; what the cache says comes with the first read. */
export async function connectJoined(
  count: number,
  connect: (signal: AbortSignal) => Promise<Link>,
  signal: AbortSignal,
): Promise<Link> {
  const token = randomBytes(JOIN_TOKEN_BYTES)
  const stop = new AbortController()
  const links: Link[] = []
  const one = async (index: number): Promise<void> => {
    const link = await connect(AbortSignal.any([signal, stop.signal]))
    links.push(link)
    const hail = Buffer.concat([encodePreamble(), encodeFrame({ type: 'join', token, index, count })])
    // One that breaks here breaks the link over all: whoever connected may try another.
    await link.outlet.send(hail).catch(() => {})
  }
  let reason: unknown
  const failed = (why: unknown): void => {
    reason ??= why
    stop.abort(reason)
  }
  await Promise.all(Array.from({ length: count }, (_, index) => one(index).catch(failed)))
  if (reason !== undefined) {
    for (const link of links) link.destroy()
    throw reason
  }
  return stripedLink(links, `${links[0]?.peer} (${count} connections)`, welcomed)
}

const greeting = accepting('hello')
const answers = accepting('joined', 'refused')

/** Throws what the cache refuses with. */
async function welcomed(link: Link): Promise<void> {
  const reader = frameReader(link.inlet)
  await reader.expect(greeting)
  const frame = await reader.expect(answers)
  if (frame.type === 'joined') return
  throw new Fault(frame.code, `the target refused one of several connections: ${frame.reason}`)
}

/** A quarter of a cache's connections: the others are for those who speak. */
const MOST_WAITING = 64

/** Connections that wait for those that they belong to. */
export interface ConnectionGroups {
  /**
   * Resolves when all are here, and the link over them is given away. Throws `TIMEOUT` if they do not come, `FORMAT` for one
   * that does not belong to the others, which are not disturbed.
   */
  join(join: Join, line: TargetLink, source: string): Promise<void>
}

interface Group {
  lines: (TargetLink | undefined)[]
  complete: Promise<void>
  settle: (reason?: Fault) => void
}

/**
 * `admit` gets the link over all connections of a group, their number, and the peer of the last; they have `patienceMs` to come. When too
 * many wait the oldest group gives way.
 */
export function openConnectionGroups(
  patienceMs: number,
  admit: (link: Link, count: number, source: string) => void,
): ConnectionGroups {
  const groups = new Map<string, Group>()

  function begin(key: string, count: number): Group {
    const lines = Array.from({ length: count }, () => undefined)
    let settle = (_reason?: Fault): void => {}
    const complete = new Promise<void>((resolve, reject) => {
      settle = (reason) => {
        clearTimeout(timer)
        groups.delete(key)
        if (reason === undefined) resolve()
        else reject(reason)
      }
    })
    const late = `only some of ${count} connections came within ${patienceMs / 1000} s`
    const timer = setTimeout(() => settle(new Fault('TIMEOUT', late)), patienceMs).unref()
    const group = { lines, complete, settle }
    groups.set(key, group)
    return group
  }

  function waiting(): number {
    let count = 0
    for (const { lines } of groups.values()) count += lines.filter((each) => each !== undefined).length
    return count
  }

  /** The oldest group gives way, but for one. */
  function makeRoom(spared: string): void {
    for (const [key, { settle }] of groups) {
      if (waiting() <= MOST_WAITING) return
      if (key !== spared) settle(new Fault('LIMIT', `${MOST_WAITING} connections wait for those which they join`))
    }
  }

  return {
    async join({ token, index, count }, line, source) {
      const key = token.toString('hex')
      const group = groups.get(key) ?? begin(key, count)
      if (group.lines.length !== count || group.lines[index] !== undefined) {
        throw new Fault('FORMAT', 'a connection that does not belong to those which it joins')
      }
      group.lines[index] = line
      const lines = group.lines.filter((each) => each !== undefined)
      if (lines.length < count) {
        makeRoom(key)
        return group.complete
      }
      group.settle()
      const links: Link[] = []
      for (const each of lines) each.give((link) => links.push(link))
      const welcome = encodeFrame({ type: 'joined' })
      // One that is broken is found broken by the link over all.
      await Promise.all(links.map((link) => link.outlet.send(welcome).catch(() => {})))
      admit(stripedLink(links, `${links[0]?.peer} (${count} connections)`), count, source)
    },
  }
}
