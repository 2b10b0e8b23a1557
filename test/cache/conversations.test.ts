/**
 * Conversations of an untrusted client with a cache: every frame in every state, and random sequences of right, wrong,
 * repeated and cut frames. A model that is written from docs/protocol/wire.md tells which frames the cache must take
 * and which it must refuse. Nothing else may be sealed, and nothing may stay in memory.
 */

import { randomBytes } from 'node:crypto'
import { Duplex, PassThrough } from 'node:stream'
import fc from 'fast-check'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { Connections } from '../../lib/cache/connection-limit.ts'
import type { CacheContext, CacheOptions } from '../../lib/cache/context.ts'
import { openFailureLog } from '../../lib/cache/failure-log.ts'
import { handleConnection } from '../../lib/cache/handle-connection.ts'
import { Handovers } from '../../lib/cache/handovers.ts'
import { Fault } from '../../lib/fault.ts'
import { digest } from '../../lib/format/digest.ts'
import { encodeFrame, type Frame } from '../../lib/format/frame.ts'
import { type FrameName, frameType } from '../../lib/format/frame-types.ts'
import { encodeImageList, type ImageEntry } from '../../lib/format/image-list.ts'
import { imageName, type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { socketPair } from '../../lib/kernel/unix.ts'
import type { Progress } from '../../lib/progress.ts'
import { PeerMemory } from '../../lib/store/accounting.ts'
import { Pool } from '../../lib/store/pool.ts'
import { Snapshots } from '../../lib/store/snapshots.ts'
import { ConnectionGroups } from '../../lib/stream/connection-groups.ts'
import { fdLink } from '../../lib/stream/fd-link.ts'
import { frameReader } from '../../lib/stream/frames.ts'
import type { Link } from '../../lib/stream/link.ts'
import { duplexLink } from '../../lib/stream/node-link.ts'
import { TargetLink } from '../../lib/stream/resuming-receiver.ts'
import { within } from '../expect.ts'
import { openFds } from '../kernel/fds.ts'
import { anyFrame } from '../support/any-frame.ts'
import { eventually, temporary } from '../support/run.ts'

const test = suite('cache/conversations')

const MIB = 2 ** 20
/** How long a resumable link waits for another connection, and a striped link for its other connections. */
const PATIENCE_MS = 200
const MOST_GROWN = 150 * MIB
const TOKEN = Buffer.alloc(16, 7)
const everyType = Object.keys(frameType) as FrameName[]

/** A cache without its sockets. */
function openCache() {
  const { path, remove } = temporary()
  const stop = new AbortController()
  const sealed: SnapshotId[] = []
  const report = (progress: Progress): void => {
    if (progress.event === 'sealed') sealed.push(snapshotId(progress.id))
  }
  const pool = new Pool(64 * MIB)
  const connections = new Connections({ most: 16, silentMs: 5000 })
  const peers = new PeerMemory(pool)
  peers.relief = () => connections.relieve(true)
  const snapshots = new Snapshots(pool, { relieve: () => connections.relieve(false), idleMs: PATIENCE_MS })
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
  const handovers = new Handovers(snapshots, options)
  const context: CacheContext = {
    snapshots,
    handovers,
    options,
    resumable: new Map(),
    incomingRounds: new Map(),
    groups: new ConnectionGroups(PATIENCE_MS, (link) => link.destroy()),
    peerMemory: peers,
    failures: openFailureLog(report),
    earlyFailures: openFailureLog(report),
  }
  return {
    context,
    pool,
    peers,
    connections,
    sealed,
    /** Removes what a conversation may leave. */
    async clear(id: SnapshotId) {
      if (handovers.get(id) !== undefined) await handovers.decide(id, 'drop').catch(() => {})
      snapshots.remove(id)
      snapshots.removeChain(id)
    },
    close() {
      context.failures.close()
      context.earlyFailures.close()
      remove()
    },
  }
}
type Cache = ReturnType<typeof openCache>

/** Makes a connection: the cache's end, and the client's. */
type LinkPair = () => [Link, Link]

const linkPairs: Record<string, LinkPair> = {
  'a socket': () => {
    const [one, two] = socketPair()
    return [fdLink(one, 'client', 'socket'), fdLink(two, 'cache', 'socket')]
  },
  'streams of Node': () => {
    const [up, down] = [new PassThrough(), new PassThrough()]
    const one = Duplex.from({ readable: up, writable: down }) as Duplex
    const two = Duplex.from({ readable: down, writable: up }) as Duplex
    return [duplexLink(one, 'client'), duplexLink(two, 'cache')]
  },
}

function sum(bytes: Uint8Array): bigint {
  const state = digest()
  state.update(bytes)
  return state.finish()
}

/**
 * docs/protocol/wire.md, Frames, Order of frames, Conversations: the first frames of a client, and the frames of a
 * snapshot.
 */
const first: FrameName[] = ['snapshot', 'get', 'handOver', 'verdict', 'resume', 'join']
const body: FrameName[] = ['image', 'data', 'packed', 'zeros', 'same', 'recall', 'imageEnd', 'snapshotEnd', 'failed']

type State =
  | { at: 'start' | 'restoring' | 'asked' | 'over' }
  | { at: 'snapshot'; token: boolean; begun: ReadonlySet<FrameName>; images: number }
  | { at: 'sealed'; token: boolean }

/** The types of frames that the cache takes in this state. */
function acceptedIn(state: State): FrameName[] {
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

/** A model of what the cache knows in a conversation about one snapshot. */
interface Model {
  state: State
  id: SnapshotId
  /** Open images by channel; they have no entry in `entries` yet. */
  open: Map<number, { name: string; bytes: Buffer[]; size: number }>
  entries: (ImageEntry | undefined)[]
  names: Set<string>
  checked: boolean
  until: boolean
  layer: 'none' | 'round' | 'last'
  /** Something was wrong: the cache takes nothing from there on. */
  wrong: boolean
  /** Everything that belongs to the snapshot was sent. */
  complete: boolean
  /** It was complete before anything was wrong. */
  sealed: boolean
}

function newModel(id: SnapshotId): Model {
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

/** One step of a conversation; `a` and `b` are numbers from which its frame is made. */
interface Step {
  kind: 'right' | 'off' | 'frame' | 'damaged' | 'cut' | 'noise' | 'again'
  type: FrameName
  a: number
  b: number
}

const imageNames = ['inventory.img', 'core-1.img', 'core-2.img', 'pstree.img', 'files.img']

/** A well-formed frame of that type; `a` and `b` decide whether its numbers fit the conversation too. */
function frameOf(model: Model, { type, a, b }: Pick<Step, 'type' | 'a' | 'b'>): Frame | [Frame, Buffer] {
  const { id } = model
  const channels = [...model.open.keys()]
  const channel = channels[a % Math.max(1, channels.length)] ?? 1 + (a % 3)
  const size = model.open.get(channel)?.size ?? 0
  const offset = b % 8 === 0 ? b : size
  const length = 1 + (b % 5 === 0 ? (a * 977) % 70_000 : b % 300)
  switch (type) {
    case 'snapshot':
    case 'remove':
      return { type, id }
    case 'image':
      return {
        type,
        channel: model.entries.length + (a % 8 === 0 ? 2 : 1),
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
      const bytes = Buffer.concat(model.open.get(channel)?.bytes ?? [])
      const right = model.checked ? sum(bytes) : 0n
      return { type, channel, size, digest: b % 8 === 0 ? right + 1n : right }
    }
    case 'snapshotEnd': {
      const images = model.entries.filter((each) => each !== undefined)
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

/** Whether the cache takes the frame; if it does, the model goes on. */
function takes(model: Model, state: State, frame: Frame, bytes: Buffer | undefined): boolean {
  if (!acceptedIn(state).includes(frame.type)) return false
  if (frame.type === 'got') return frame.offset === 0
  if (state.at !== 'snapshot') {
    if (frame.type === 'snapshot') model.state = { at: 'snapshot', token: false, begun: new Set(), images: 0 }
    else if (frame.type === 'get') model.state = { at: 'asked' }
    else model.state = { at: frame.type === 'handOver' ? 'restoring' : 'over' }
    return true
  }
  const image = 'channel' in frame ? model.open.get(frame.channel) : undefined
  const goesOn = (more: Buffer): boolean => {
    if (image === undefined || !('offset' in frame) || frame.offset !== image.size) return false
    image.bytes.push(more)
    image.size += more.length
    return true
  }
  model.state = { ...state, begun: new Set([...state.begun, frame.type]) }
  switch (frame.type) {
    case 'handOver':
      model.until = true
      model.state.token = frame.token !== undefined
      return true
    case 'layer':
      model.layer = frame.last ? 'last' : 'round'
      return frame.under === 0 && (!model.until || frame.last)
    case 'unchecked':
      model.checked = false
      return true
    case 'reserve':
    case 'recall':
      return true
    case 'image':
      if (frame.channel !== model.entries.length + 1 || model.names.has(frame.name)) return false
      model.names.add(frame.name)
      model.entries.push(undefined)
      model.open.set(frame.channel, { name: frame.name, bytes: [], size: 0 })
      model.state.images++
      return true
    case 'data':
      return goesOn(bytes as Buffer)
    case 'zeros':
      return goesOn(Buffer.alloc(frame.raw))
    case 'imageEnd': {
      const right = model.checked ? sum(Buffer.concat(image?.bytes ?? [])) : 0n
      if (image === undefined) return false
      model.entries[frame.channel - 1] = { name: imageName(image.name), size: image.size, digest: right }
      model.open.delete(frame.channel)
      return frame.size === image.size && frame.digest === right
    }
    case 'snapshotEnd': {
      const list = encodeImageList(frame.images)
      const all = model.entries.filter((each) => each !== undefined)
      model.complete =
        model.open.size === 0 &&
        list.equals(encodeImageList(all)) &&
        frame.digest === sum(list) &&
        (model.layer === 'round' || model.names.has('inventory.img'))
      if (model.complete) model.state = model.until ? { at: 'sealed', token: state.token } : { at: 'over' }
      return model.complete
    }
    // `same` without an offer, `packed` that cannot be decompressed, and `failed`.
    default:
      return false
  }
}

function advance(model: Model, frame: Frame, bytes: Buffer | undefined): void {
  if (model.state.at === 'over') return
  if (!takes(model, model.state, frame, bytes)) model.wrong = true
  if (model.complete && !model.wrong) model.sealed = true
}

/** The next right frame on the way to a sealed snapshot; undefined where there is none. */
function rightStep(
  model: Model,
  { a, b }: Pick<Step, 'a' | 'b'>,
  hurry = false,
): Pick<Step, 'type' | 'a' | 'b'> | undefined {
  const odd = { a: 2 * a + 1, b: 8 * (b >> 3) + 1 + (b % 7) }
  const { state } = model
  if (state.at === 'start') return { type: 'snapshot', ...odd }
  if (state.at === 'sealed') return { type: 'verdict', ...odd }
  if (state.at !== 'snapshot') return undefined
  if (!hurry && a % 3 !== 0 && state.images === 0) {
    const choice = (['handOver', 'layer', 'unchecked', 'reserve', 'recall'] as const)[b % 5] as FrameName
    // The last part of a chain is validated by other rules.
    if (acceptedIn(state).includes(choice) && !(choice === 'layer' && model.until)) {
      return { type: choice, a: odd.a, b: choice === 'handOver' ? b : odd.b }
    }
  }
  if (model.open.size > 0 && (hurry || a % 4 === 0)) return { type: 'imageEnd', ...odd }
  if (model.open.size > 0 && a % 4 < 3) return { type: a % 8 < 5 ? 'data' : 'zeros', ...odd }
  // A part of a chain has no inventory here: it would have to be one of CRIU's.
  const names = model.layer === 'none' ? imageNames : imageNames.slice(1)
  const free = names.findIndex((name) => !model.names.has(name))
  if (free >= 0 && (model.names.size === 0 || !hurry)) {
    return { type: 'image', a: odd.a, b: free + imageNames.length - names.length }
  }
  return { type: 'snapshotEnd', ...odd }
}

/** The bytes of these steps; advances the model. */
function encodeSteps(model: Model, steps: readonly Step[], finishes: boolean): { parts: Buffer[]; cut: boolean } {
  const parts: Buffer[] = [encodePreamble()]
  let last: [Frame, Buffer | undefined] | undefined
  const say = (what: Pick<Step, 'type' | 'a' | 'b'>): Buffer => {
    const made = frameOf(model, what)
    const [frame, bytes] = Array.isArray(made) ? made : [made, undefined]
    advance(model, frame, bytes)
    last = [frame, bytes]
    const whole = Buffer.concat([encodeFrame(frame), ...(bytes === undefined ? [] : [bytes])])
    parts.push(whole)
    return whole
  }
  for (const step of steps) {
    const { kind, a, b } = step
    const right = rightStep(model, step)
    const over = model.state.at === 'over'
    if (kind === 'right' && right !== undefined) say(right)
    else if (kind === 'off' && right !== undefined) say({ type: right.type, a: 8 * (a >> 3), b: 8 * (b >> 3) })
    else if (kind === 'frame' || kind === 'right' || kind === 'off') say(step)
    else if (kind === 'again' && last !== undefined) {
      advance(model, ...last)
      parts.push(parts.at(-1) as Buffer)
    } else if (kind === 'damaged') {
      const was = model.sealed
      const whole = Buffer.from(say(step))
      const at = a % Math.min(whole.length, 24)
      whole[at] = (whole[at] as number) ^ (1 << (b % 8))
      parts[parts.length - 1] = whole
      last = undefined
      // The cache never takes a damaged header.
      if (!over) Object.assign(model, { wrong: true, sealed: was })
    } else if (kind === 'noise') {
      parts.push(randomBytes(24 + (a % 100)))
      last = undefined
      if (!over) model.wrong = true
    } else if (kind === 'cut' && parts.length > 1) {
      const whole = parts.pop() as Buffer
      parts.push(whole.subarray(0, a % whole.length))
      return { parts, cut: true }
    }
  }
  for (let left = 20; finishes && !model.complete && left > 0; left--) {
    const right = rightStep(model, { a: 2, b: 3 }, true)
    if (right === undefined) break
    say(right)
  }
  return { parts, cut: false }
}

interface Answers {
  types: FrameName[]
  refusal: string | undefined
  reads: number
}

/** Sends these bytes to the cache, and reads its answers to the end of both directions. */
async function converse(
  cache: Cache,
  makeLinks: LinkPair,
  parts: readonly Buffer[],
  joinsEnd = true,
): Promise<Answers> {
  const [theirs, ours] = makeLinks()
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
  const targetLink = new TargetLink(counted, (bytes) => connection.moved(bytes))
  const connection = cache.connections.add('client', (reason) => targetLink.link.destroy(reason))
  const over = handleConnection(targetLink, cache.context, { connection, origin: 'client' }).finally(() =>
    connection.leave(),
  )
  const types: FrameName[] = []
  let refusal: string | undefined
  const reader = frameReader(ours.inlet)
  const reading = (async () => {
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
  const writing = (async () => {
    for (const part of parts) await ours.outlet.send(part)
    if (joinsEnd) await ours.outlet.finish()
  })().catch(() => {})
  await within(Promise.race([Promise.all([writing, reading]), over]), 'an end', 10_000)
  await within(Promise.race([reading, new Promise((resolve) => setTimeout(resolve, 100))]), 'an end')
  ours.destroy()
  await within(over, 'the end of the conversation', 10_000)
  return { types, refusal, reads }
}

/** Waits until the memory that was reserved for the conversation is free again. */
async function settled({ peers, pool }: Cache, used: number, what: string): Promise<void> {
  assert.is(peers.used, 0, `${what}: nothing is held for peers`)
  await eventually(
    () => pool.used === used || undefined,
    `${what}: the pool as it was, ${pool.used} of ${used},`,
    10_000,
  )
}

/** Stores a snapshot that a client can ask for. */
async function storeSnapshot(cache: Cache): Promise<void> {
  const model = newModel(snapshotId('stored'))
  const { parts } = encodeSteps(model, [], true)
  await converse(cache, linkPairs['a socket'] as LinkPair, parts)
  assert.equal(cache.sealed, [snapshotId('stored')])
}

let number = 0

type Said = Pick<Step, 'type' | 'a' | 'b'>
const say = (type: Said['type'], a = 1, b = 1): Said => ({ type, a, b })
const snapshot = say('snapshot')
const wholeImage = [say('image', 1, 0), say('imageEnd')]
const handOver = [snapshot, say('handOver', 0)]
const handOverWithToken = [snapshot, say('handOver', 0, 2)]
/** The frames that lead into each state; the cache takes all of them. */
const prefixes: Record<string, Said[]> = {
  'at the start': [],
  'after handOver of a client': [say('handOver')],
  'after get': [say('get', 0)],
  'after snapshot': [snapshot],
  'after handOver': handOver,
  'after handOver with a token': handOverWithToken,
  'after layer': [snapshot, say('layer')],
  'after unchecked': [snapshot, say('unchecked')],
  'after reserve': [snapshot, say('reserve')],
  'after recall': [snapshot, say('recall')],
  'in an image': [snapshot, say('image', 1, 0), say('data')],
  'after an image': [snapshot, ...wholeImage],
  'after the end of a hand-over': [...handOver, ...wholeImage, say('snapshotEnd')],
  'after the end of a hand-over with a token': [...handOverWithToken, ...wholeImage, say('snapshotEnd')],
}

const step = (what: Said): Step => ({ kind: 'frame', ...what })

for (const [name, makeLinks] of Object.entries(linkPairs)) {
  test(`over ${name}: every frame in every state is taken where it belongs, and refused elsewhere`, async () => {
    const cache = openCache()
    await storeSnapshot(cache)
    const { used } = cache.pool
    const wrong: string[] = []
    for (const [where, prefix] of Object.entries(prefixes)) {
      for (const type of everyType) {
        const id = snapshotId(`m${number++}`)
        const before = newModel(id)
        encodeSteps(before, prefix.map(step), false)
        assert.not(before.wrong, where)
        const model = newModel(id)
        const { parts } = encodeSteps(model, [...prefix, { type, a: type === 'layer' ? 2 : 1, b: 1 }].map(step), false)
        const sealed = cache.sealed.length
        const { refusal = '' } = await converse(cache, makeLinks, parts)
        const taken = !/ where none belongs/.test(refusal)
        if (taken !== acceptedIn(before.state).includes(type))
          wrong.push(`${type} ${where}: ${taken ? 'taken' : refusal}`)
        if (cache.sealed.length - sealed !== Number(model.sealed)) wrong.push(`${type} ${where}: sealed or not`)
        await cache.clear(id)
        await settled(cache, used, `${type} ${where}`)
      }
    }
    assert.equal(wrong, [])
    cache.close()
  })

  test(`over ${name}: random sequences`, async () => {
    const cache = openCache()
    await storeSnapshot(cache)
    const { used } = cache.pool
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
        const model = newModel(id)
        const { parts, cut } = encodeSteps(model, list, finishes)
        const before = cache.sealed.length
        const { refusal, reads, types } = await converse(cache, makeLinks, parts)
        const sealed = cache.sealed.length - before
        const details = `${JSON.stringify(model.state)}, ${types.join()}, ${refusal}`
        await cache.clear(id)
        const doubtful = model.layer !== 'none' && model.names.has('inventory.img')
        if (cut || doubtful) assert.ok(sealed <= Number(model.sealed), details)
        else assert.is(sealed, Number(model.sealed), details)
        if (model.wrong && !cut) assert.ok(refusal !== undefined, details)
        const bytes = parts.reduce((all, { length }) => all + length, 0)
        assert.ok(reads <= 4 * parts.length + bytes / 1000 + 40, `${reads} reads of ${bytes} bytes`)
        await settled(cache, used, details)
        counts.sealed += sealed
        counts.wrong += Number(model.wrong)
        counts.cut += Number(cut)
      }),
      { numRuns: 400, includeErrorInReport: true },
    )
    const grown = process.memoryUsage.rss() - rss
    console.log(`figures: ${name}: ${JSON.stringify(counts)} of 400, RSS grew by ${(grown / MIB).toFixed(0)} MiB`)
    assert.ok(grown <= MOST_GROWN, `${grown} bytes`)
    assert.is(openFds(), descriptors)
    assert.ok(counts.sealed > 50 && counts.wrong > 50 && counts.cut > 10, JSON.stringify(counts))
    cache.close()
  })
}

test.run()
