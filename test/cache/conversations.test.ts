/**
 * Conversations with a cache as a stranger may lead them: every frame in every state, and random sequences of right, wrong, repeated
 * and cut ones. A model that is written from docs/protocol/wire.md says what is taken; what it refuses must be refused, what it takes must be taken, nothing
 * else may be sealed, and nothing may stay.
 */

import { randomBytes } from 'node:crypto'
import { Duplex, PassThrough } from 'node:stream'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { handleConnection } from '../../lib/cache/connection.ts'
import { openConnections } from '../../lib/cache/connections.ts'
import type { CacheContext, CacheOptions } from '../../lib/cache/context.ts'
import { openFailureLog } from '../../lib/cache/failure-log.ts'
import { openHandovers } from '../../lib/cache/handovers.ts'
import { Fault } from '../../lib/fault.ts'
import { digest } from '../../lib/format/digest.ts'
import { type FrameName, frameType } from '../../lib/format/frame.ts'
import { encodeImageList, type ImageEntry } from '../../lib/format/image-list.ts'
import { imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { encodeFrame, type Frame } from '../../lib/format/wire.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import type { Progress } from '../../lib/progress.ts'
import { openPeerMemory } from '../../lib/store/accounting.ts'
import { openPool } from '../../lib/store/pool.ts'
import { openSnapshots } from '../../lib/store/snapshots.ts'
import { openConnectionGroups } from '../../lib/stream/connection-groups.ts'
import { fdLink } from '../../lib/stream/fd-link.ts'
import { frameReader } from '../../lib/stream/frames.ts'
import type { Link } from '../../lib/stream/link.ts'
import { duplexLink } from '../../lib/stream/node-link.ts'
import { openTargetLink } from '../../lib/stream/resuming-receiver.ts'
import { within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { anyFrame } from '../support/any-frame.ts'
import { eventually, temporary } from '../support/run.ts'

const test = suite('cache/conversations')

const MIB = 2 ** 20
/** How long a conversation that outlives its link waits for another, and a connection for those which it joins. */
const PATIENCE_MS = 200
const MOST_GROWN = 150 * MIB
const TOKEN = Buffer.alloc(16, 7)
const everyType = Object.keys(frameType) as FrameName[]

/** A cache without its sockets. */
function openHouse() {
  const { path, remove } = temporary()
  const stop = new AbortController()
  const sealed: SnapshotId[] = []
  const report = (progress: Progress): void => {
    if (progress.event === 'sealed') sealed.push(snapshotId(progress.id))
  }
  const pool = openPool(64 * MIB)
  const connections = openConnections({ most: 16, silentMs: 5000 })
  const peers = openPeerMemory(pool)
  peers.relief = () => connections.relieve(true)
  const snapshots = openSnapshots(pool, { relieve: () => connections.relieve(false), idleMs: PATIENCE_MS })
  const options: CacheOptions = {
    host: '127.0.0.1',
    port: undefined,
    credentials: undefined,
    allowUids: undefined,
    directory: path,
    id: undefined,
    maxMemory: pool.limit,
    reserve: 0,
    timeoutMs: PATIENCE_MS,
    restore: undefined,
    releaseEarly: false,
    keep: false,
    dedup: false,
    report,
    signal: stop.signal,
  }
  const handovers = openHandovers(snapshots, options)
  const context: CacheContext = {
    snapshots,
    handovers,
    options,
    incoming: new Map(),
    rounds: new Map(),
    groups: openConnectionGroups(PATIENCE_MS, (link) => link.destroy()),
    peers,
    failures: openFailureLog(report),
    silentFailures: openFailureLog(report),
  }
  return {
    context,
    pool,
    peers,
    connections,
    sealed,
    /** Takes away what a conversation may have left by right. */
    async clear(id: SnapshotId) {
      if (handovers.get(id) !== undefined) await handovers.decide(id, 'drop').catch(() => {})
      snapshots.remove(id)
      snapshots.removeChain(id)
    },
    close() {
      context.failures.close()
      context.silentFailures.close()
      remove()
    },
  }
}
type Home = ReturnType<typeof openHouse>

/** The cache's end, and the stranger's. */
type Carrier = () => [Link, Link]

const carriers: Record<string, Carrier> = {
  'a socket': () => {
    const [one, two] = socketPair()
    return [fdLink(one, 'stranger', 'socket'), fdLink(two, 'cache', 'socket')]
  },
  'streams of Node': () => {
    const [up, down] = [new PassThrough(), new PassThrough()]
    const one = Duplex.from({ readable: up, writable: down }) as Duplex
    const two = Duplex.from({ readable: down, writable: up }) as Duplex
    return [duplexLink(one, 'stranger'), duplexLink(two, 'cache')]
  },
}

function sum(bytes: Uint8Array): bigint {
  const state = digest()
  state.update(bytes)
  return state.finish()
}

/** docs/protocol/wire.md, Frames, Order of frames, Conversations: what the first words of a stranger are, and what follows each. */
const first: FrameName[] = ['snapshot', 'get', 'handOver', 'verdict', 'resume', 'join']
const body: FrameName[] = ['image', 'data', 'packed', 'zeros', 'same', 'recall', 'imageEnd', 'snapshotEnd', 'failed']

type State =
  | { at: 'start' | 'restoring' | 'asked' | 'over' }
  | { at: 'snapshot'; token: boolean; begun: ReadonlySet<FrameName>; images: number }
  | { at: 'sealed'; token: boolean }

/** The types of frames that belong where the conversation is. */
function belongs(state: State): FrameName[] {
  switch (state.at) {
    case 'start':
      return first
    case 'restoring':
      return ['get']
    case 'asked':
      return ['sealed']
    case 'over':
      return []
    case 'sealed':
      return ['verdict', 'failed', ...(state.token ? (['got'] as const) : [])]
    case 'snapshot': {
      const { begun, images, token } = state
      const has = (...names: FrameName[]): boolean => names.some((name) => begun.has(name))
      const more: FrameName[] = [...body, ...(token ? (['got'] as const) : [])]
      if (images > 0) return more
      if (!has('handOver', 'layer', 'unchecked', 'reserve', 'recall')) more.push('handOver')
      if (!has('layer', 'unchecked', 'reserve', 'recall')) more.push('layer')
      if (!has('unchecked')) more.push('unchecked')
      if (!has('reserve')) more.push('reserve')
      return more
    }
  }
}

/** What a stranger says, in a conversation about one snapshot: the model of what the cache knows. */
interface Speech {
  state: State
  id: SnapshotId
  /** Images by channel; those that are open have no entry. */
  open: Map<number, { name: string; bytes: Buffer[]; size: number }>
  entries: (ImageEntry | undefined)[]
  names: Set<string>
  checked: boolean
  until: boolean
  layer: 'none' | 'round' | 'last'
  /** Something was wrong: from there on nothing is taken. What follows is said as if it had not been said. */
  wrong: boolean
  /** All that belongs to the snapshot has been said. */
  complete: boolean
  /** And nothing was wrong until then. */
  sealed: boolean
}

function speech(id: SnapshotId): Speech {
  return {
    state: { at: 'start' },
    id,
    open: new Map(),
    entries: [],
    names: new Set(),
    checked: true,
    until: false,
    layer: 'none',
    wrong: false,
    complete: false,
    sealed: false,
  }
}

/** Numbers of a step, of which each kind takes what it needs. */
interface Step {
  kind: 'right' | 'off' | 'frame' | 'damaged' | 'cut' | 'noise' | 'again'
  type: FrameName
  a: number
  b: number
}

const imageNames = ['inventory.img', 'core-1.img', 'core-2.img', 'pstree.img', 'files.img']

/** A frame of that type: right in itself, and where `a` and `b` say so also in its numbers. */
function frameOf(said: Speech, { type, a, b }: Pick<Step, 'type' | 'a' | 'b'>): Frame | [Frame, Buffer] {
  const { id } = said
  const channels = [...said.open.keys()]
  const channel = channels[a % Math.max(1, channels.length)] ?? 1 + (a % 3)
  const size = said.open.get(channel)?.size ?? 0
  const offset = b % 8 === 0 ? b : size
  const length = 1 + (b % 5 === 0 ? (a * 977) % 70_000 : b % 300)
  switch (type) {
    case 'snapshot':
    case 'remove':
      return { type, id }
    case 'image':
      return {
        type,
        channel: said.entries.length + (a % 8 === 0 ? 2 : 1),
        name: imageName(imageNames[b % imageNames.length] as string),
      }
    case 'data':
      return [{ type, channel, offset, length }, Buffer.alloc(length, a)]
    case 'packed':
      return [{ type, channel, offset, codec: 'lz4', raw: 1000, length: 3 }, Buffer.from([a, b, a])]
    case 'zeros':
      return { type, channel, offset, raw: length }
    case 'same':
      return { type, channel, offset: 0, source: 0, first: a, pages: 1 + (b % 4) }
    case 'imageEnd': {
      const bytes = Buffer.concat(said.open.get(channel)?.bytes ?? [])
      const right = said.checked ? sum(bytes) : 0n
      return { type, channel, size, digest: b % 8 === 0 ? right + 1n : right }
    }
    case 'snapshotEnd': {
      const images = said.entries.filter((each) => each !== undefined)
      return { type, images, digest: sum(encodeImageList(images)) + (b % 8 === 0 ? 1n : 0n) }
    }
    case 'failed':
    case 'refused':
      return { type, code: 'FAILED_DUMP', reason: 'x'.repeat(b) }
    case 'handOver':
      return { type, until: a % 2 === 0 ? 'sealed' : 'running', ...(b % 2 === 0 && { token: TOKEN }) }
    case 'resume':
      return { type, offset: a, token: TOKEN, id }
    case 'reserve':
    case 'reserved':
      return { type, offset: a * 1000 }
    case 'recall':
      return { type, offset: 0 }
    case 'got':
      return { type, offset: b % 8 === 0 ? 2 ** 40 : 0 }
    case 'layer':
      return { type, under: b % 4 === 0 ? 1 : 0, last: a % 2 === 0, token: TOKEN }
    case 'get':
      return { type, id: snapshotId(a % 2 === 0 ? 'stored' : 'missing'), timeoutMs: 0 }
    case 'ack':
      return { type, channel, offset: a }
    case 'sealed':
      return { type, digest: BigInt(a) }
    case 'verdict':
      return { type, verdict: (['go', 'drop', 'copy'] as const)[a % 3] as 'go', token: TOKEN, id }
    case 'fate':
      return { type, fate: 'running' }
    case 'join':
      return { type, token: randomBytes(16), index: a % 2, count: 2 }
    case 'listed':
      return { type, total: 0, holdings: [] }
    case 'recalled':
      return { type, offers: false, total: 0, digests: new Uint32Array() }
    case 'pin':
      return { type, id, pinned: a % 2 === 0 }
    case 'list':
    case 'unchecked':
    case 'hello':
    case 'joined':
    case 'ready':
      return { type }
  }
}

/** Whether the cache takes the frame; where it does, the speech goes on. */
function takes(said: Speech, state: State, frame: Frame, bytes: Buffer | undefined): boolean {
  if (!belongs(state).includes(frame.type)) return false
  if (frame.type === 'got') return frame.offset === 0
  if (state.at !== 'snapshot') {
    if (frame.type === 'snapshot') said.state = { at: 'snapshot', token: false, begun: new Set(), images: 0 }
    else if (frame.type === 'get') said.state = { at: 'asked' }
    else said.state = { at: frame.type === 'handOver' ? 'restoring' : 'over' }
    return true
  }
  const image = 'channel' in frame ? said.open.get(frame.channel) : undefined
  const goesOn = (more: Buffer): boolean => {
    if (image === undefined || !('offset' in frame) || frame.offset !== image.size) return false
    image.bytes.push(more)
    image.size += more.length
    return true
  }
  said.state = { ...state, begun: new Set([...state.begun, frame.type]) }
  switch (frame.type) {
    case 'handOver':
      said.until = true
      said.state.token = frame.token !== undefined
      return true
    case 'layer':
      said.layer = frame.last ? 'last' : 'round'
      return frame.under === 0 && (!said.until || frame.last)
    case 'unchecked':
      said.checked = false
      return true
    case 'reserve':
    case 'recall':
      return true
    case 'image':
      if (frame.channel !== said.entries.length + 1 || said.names.has(frame.name)) return false
      said.names.add(frame.name)
      said.entries.push(undefined)
      said.open.set(frame.channel, { name: frame.name, bytes: [], size: 0 })
      said.state.images++
      return true
    case 'data':
      return goesOn(bytes as Buffer)
    case 'zeros':
      return goesOn(Buffer.alloc(frame.raw))
    case 'imageEnd': {
      const right = said.checked ? sum(Buffer.concat(image?.bytes ?? [])) : 0n
      if (image === undefined) return false
      said.entries[frame.channel - 1] = { name: imageName(image.name), size: image.size, digest: right }
      said.open.delete(frame.channel)
      return frame.size === image.size && frame.digest === right
    }
    case 'snapshotEnd': {
      const list = encodeImageList(frame.images)
      const all = said.entries.filter((each) => each !== undefined)
      said.complete =
        said.open.size === 0 &&
        list.equals(encodeImageList(all)) &&
        frame.digest === sum(list) &&
        (said.layer === 'round' || said.names.has('inventory.img'))
      if (said.complete) said.state = said.until ? { at: 'sealed', token: state.token } : { at: 'over' }
      return said.complete
    }
    // What was not offered, what cannot be decompressed, and the word that it is all for nothing.
    default:
      return false
  }
}

function hear(said: Speech, frame: Frame, bytes: Buffer | undefined): void {
  if (said.state.at === 'over') return
  if (!takes(said, said.state, frame, bytes)) said.wrong = true
  if (said.complete && !said.wrong) said.sealed = true
}

/** The next frame that goes on rightly towards a sealed snapshot, and undefined where there is none. */
function rightStep(
  said: Speech,
  { a, b }: Pick<Step, 'a' | 'b'>,
  hurry = false,
): Pick<Step, 'type' | 'a' | 'b'> | undefined {
  const odd = { a: 2 * a + 1, b: 8 * (b >> 3) + 1 + (b % 7) }
  const { state } = said
  if (state.at === 'start') return { type: 'snapshot', ...odd }
  if (state.at === 'sealed') return { type: 'verdict', ...odd }
  if (state.at !== 'snapshot') return undefined
  if (!hurry && a % 3 !== 0 && state.images === 0) {
    const choice = (['handOver', 'layer', 'unchecked', 'reserve', 'recall'] as const)[b % 5] as FrameName
    // The chain's last part is looked through by other rules.
    if (belongs(state).includes(choice) && !(choice === 'layer' && said.until)) {
      return { type: choice, a: odd.a, b: choice === 'handOver' ? b : odd.b }
    }
  }
  if (said.open.size > 0 && (hurry || a % 4 === 0)) return { type: 'imageEnd', ...odd }
  if (said.open.size > 0 && a % 4 < 3) return { type: a % 8 < 5 ? 'data' : 'zeros', ...odd }
  // CRIU's inventory decides what becomes of a part of a chain, and this one is none.
  const names = said.layer === 'none' ? imageNames : imageNames.slice(1)
  const free = names.findIndex((name) => !said.names.has(name))
  if (free >= 0 && (said.names.size === 0 || !hurry)) {
    return { type: 'image', a: odd.a, b: free + imageNames.length - names.length }
  }
  return { type: 'snapshotEnd', ...odd }
}

/** The bytes of a speech, and what the model makes of it. */
function spoken(said: Speech, steps: readonly Step[], finishes: boolean): { parts: Buffer[]; cut: boolean } {
  const parts: Buffer[] = [encodePreamble()]
  let last: [Frame, Buffer | undefined] | undefined
  const say = (what: Pick<Step, 'type' | 'a' | 'b'>): Buffer => {
    const made = frameOf(said, what)
    const [frame, bytes] = Array.isArray(made) ? made : [made, undefined]
    hear(said, frame, bytes)
    last = [frame, bytes]
    const whole = Buffer.concat([encodeFrame(frame), ...(bytes === undefined ? [] : [bytes])])
    parts.push(whole)
    return whole
  }
  for (const step of steps) {
    const { kind, a, b } = step
    const right = rightStep(said, step)
    const over = said.state.at === 'over'
    if (kind === 'right' && right !== undefined) say(right)
    else if (kind === 'off' && right !== undefined) say({ type: right.type, a: 8 * (a >> 3), b: 8 * (b >> 3) })
    else if (kind === 'frame' || kind === 'right' || kind === 'off') say(step)
    else if (kind === 'again' && last !== undefined) {
      hear(said, ...last)
      parts.push(parts.at(-1) as Buffer)
    } else if (kind === 'damaged') {
      const was = said.sealed
      const whole = Buffer.from(say(step))
      const at = a % Math.min(whole.length, 24)
      whole[at] = (whole[at] as number) ^ (1 << (b % 8))
      parts[parts.length - 1] = whole
      last = undefined
      // A header that is damaged is never taken.
      if (!over) Object.assign(said, { wrong: true, sealed: was })
    } else if (kind === 'noise') {
      parts.push(randomBytes(24 + (a % 100)))
      last = undefined
      if (!over) said.wrong = true
    } else if (kind === 'cut' && parts.length > 1) {
      const whole = parts.pop() as Buffer
      parts.push(whole.subarray(0, a % whole.length))
      return { parts, cut: true }
    }
  }
  for (let left = 20; finishes && !said.complete && left > 0; left--) {
    const right = rightStep(said, { a: 2, b: 3 }, true)
    if (right === undefined) break
    say(right)
  }
  return { parts, cut: false }
}

interface Heard {
  types: FrameName[]
  refusal: string | undefined
  reads: number
}

/** Lets the cache answer these bytes, to the end of both directions. */
async function played(home: Home, carrier: Carrier, parts: readonly Buffer[], joinsEnd = true): Promise<Heard> {
  const [theirs, ours] = carrier()
  let reads = 0
  const counted: Link = {
    ...theirs,
    inlet: {
      fill: theirs.inlet.fill,
      async read(into) {
        reads++
        return theirs.inlet.read(into)
      },
    },
  }
  const line = openTargetLink(counted)
  const connection = home.connections.add('stranger', (reason) => line.link.destroy(reason))
  const over = handleConnection(line, home.context, { connection, source: 'stranger' }).finally(connection.leave)
  const types: FrameName[] = []
  let refusal: string | undefined
  const reader = frameReader(ours.inlet)
  const hearing = (async () => {
    for (;;) {
      const frame = await reader.next(anyFrame)
      if (frame === undefined) return
      types.push(frame.type)
      if (frame.type === 'data') await ours.inlet.fill(Buffer.alloc(frame.length))
      if (frame.type === 'refused') {
        refusal = frame.reason
        return
      }
      if (frame.type === 'fate') return
    }
  })().catch((error: unknown) => {
    if (!(error instanceof Fault)) throw error
  })
  const saying = (async () => {
    for (const part of parts) await ours.outlet.send(part)
    if (joinsEnd) await ours.outlet.finish()
  })().catch(() => {})
  await within(Promise.race([Promise.all([saying, hearing]), over]), 'an end', 10_000)
  await within(Promise.race([hearing, new Promise((resolve) => setTimeout(resolve, 100))]), 'an end')
  ours.destroy()
  await within(over, 'the end of the conversation', 10_000)
  return { types, refusal, reads }
}

/** Memory that was made ready for what was announced comes back when it is ready. */
async function settled({ peers, pool }: Home, used: number, what: string): Promise<void> {
  assert.is(peers.used, 0, `${what}: nothing is held for peers`)
  await eventually(
    () => pool.used === used || undefined,
    `${what}: the pool as it was, ${pool.used} of ${used},`,
    10_000,
  )
}

/** A snapshot that can be asked for. */
async function stock(home: Home): Promise<void> {
  const said = speech(snapshotId('stored'))
  const { parts } = spoken(said, [], true)
  await played(home, carriers['a socket'] as Carrier, parts)
  assert.equal(home.sealed, [snapshotId('stored')])
}

let number = 0

/** Ways into each state; the last frame of each has been taken. */
const ways: Record<string, Pick<Step, 'type' | 'a' | 'b'>[]> = {
  'at the start': [],
  'after handOver of a client': [{ type: 'handOver', a: 1, b: 1 }],
  'after get': [{ type: 'get', a: 0, b: 1 }],
  'after snapshot': [{ type: 'snapshot', a: 1, b: 1 }],
  'after handOver': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'handOver', a: 0, b: 1 },
  ],
  'after handOver with a token': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'handOver', a: 0, b: 2 },
  ],
  'after layer': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'layer', a: 1, b: 1 },
  ],
  'after unchecked': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'unchecked', a: 1, b: 1 },
  ],
  'after reserve': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'reserve', a: 1, b: 1 },
  ],
  'after recall': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'recall', a: 1, b: 1 },
  ],
  'in an image': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'image', a: 1, b: 0 },
    { type: 'data', a: 1, b: 1 },
  ],
  'after an image': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'image', a: 1, b: 0 },
    { type: 'imageEnd', a: 1, b: 1 },
  ],
  'after the end of a hand-over': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'handOver', a: 0, b: 1 },
    { type: 'image', a: 1, b: 0 },
    { type: 'imageEnd', a: 1, b: 1 },
    { type: 'snapshotEnd', a: 1, b: 1 },
  ],
  'after the end of a hand-over with a token': [
    { type: 'snapshot', a: 1, b: 1 },
    { type: 'handOver', a: 0, b: 2 },
    { type: 'image', a: 1, b: 0 },
    { type: 'imageEnd', a: 1, b: 1 },
    { type: 'snapshotEnd', a: 1, b: 1 },
  ],
}

const step = (what: Pick<Step, 'type' | 'a' | 'b'>): Step => ({ kind: 'frame', ...what })

for (const [name, carrier] of Object.entries(carriers)) {
  test(`over ${name}: every frame in every state is taken where it belongs, and refused elsewhere`, async () => {
    const home = openHouse()
    await stock(home)
    const { used } = home.pool
    const wrong: string[] = []
    for (const [where, way] of Object.entries(ways)) {
      for (const type of everyType) {
        const id = snapshotId(`m${number++}`)
        const before = speech(id)
        spoken(before, way.map(step), false)
        assert.not(before.wrong, where)
        const said = speech(id)
        const { parts } = spoken(said, [...way, { type, a: type === 'layer' ? 2 : 1, b: 1 }].map(step), false)
        const sealed = home.sealed.length
        const { refusal = '' } = await played(home, carrier, parts)
        const taken = !/ where none belongs/.test(refusal)
        if (taken !== belongs(before.state).includes(type)) wrong.push(`${type} ${where}: ${taken ? 'taken' : refusal}`)
        if (home.sealed.length - sealed !== Number(said.sealed)) wrong.push(`${type} ${where}: sealed or not`)
        await home.clear(id)
        await settled(home, used, `${type} ${where}`)
      }
    }
    assert.equal(wrong, [])
    home.close()
  })

  test(`over ${name}: random sequences`, async () => {
    const home = openHouse()
    await stock(home)
    const { used } = home.pool
    const steps = fc.array(
      fc.record({
        kind: fc.oneof(
          { weight: 12, arbitrary: fc.constant<Step['kind']>('right') },
          { weight: 2, arbitrary: fc.constantFrom<Step['kind']>('off', 'frame', 'again') },
          { weight: 1, arbitrary: fc.constantFrom<Step['kind']>('damaged', 'cut', 'noise') },
        ),
        type: fc.constantFrom(...everyType),
        a: fc.nat(250),
        b: fc.nat(250),
      }),
      { maxLength: 16 },
    )
    const counts = { sealed: 0, wrong: 0, cut: 0 }
    const descriptors = openFds()
    const rss = process.memoryUsage.rss()
    await fc.assert(
      fc.asyncProperty(steps, fc.boolean(), async (list, finishes) => {
        const id = snapshotId(`f${number++}`)
        const said = speech(id)
        const { parts, cut } = spoken(said, list, finishes)
        const before = home.sealed.length
        const { refusal, reads, types } = await played(home, carrier, parts)
        const sealed = home.sealed.length - before
        const told = `${JSON.stringify(said.state)}, ${types.join()}, ${refusal}`
        await home.clear(id)
        const doubtful = said.layer !== 'none' && said.names.has('inventory.img')
        if (cut || doubtful) assert.ok(sealed <= Number(said.sealed), told)
        else assert.is(sealed, Number(said.sealed), told)
        if (said.wrong && !cut) assert.ok(refusal !== undefined, told)
        const bytes = parts.reduce((all, { length }) => all + length, 0)
        assert.ok(reads <= 4 * parts.length + bytes / 1000 + 40, `${reads} reads of ${bytes} bytes`)
        await settled(home, used, told)
        counts.sealed += sealed
        counts.wrong += Number(said.wrong)
        counts.cut += Number(cut)
      }),
      { numRuns: 400, includeErrorInReport: true },
    )
    const grown = process.memoryUsage.rss() - rss
    console.log(`figures: ${name}: ${JSON.stringify(counts)} of 400, RSS grew by ${(grown / MIB).toFixed(0)} MiB`)
    assert.ok(grown <= MOST_GROWN, `${grown} bytes`)
    assert.is(openFds(), descriptors)
    assert.ok(counts.sealed > 50 && counts.wrong > 50 && counts.cut > 10, JSON.stringify(counts))
    home.close()
  })
}

test.run()
