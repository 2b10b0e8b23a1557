/**
 * Peers that make a cache hold what they never pay for. Whatever they say, and however many they are, it holds no more
 * than its images and a bounded amount, says how much that is, and gives it back when they are gone.
 */
import { randomBytes } from 'node:crypto'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { crc32 } from 'node:zlib'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { encodeFrame, type Frame, HEADER_BYTES } from '../../lib/format/frame.ts'
import { type FrameName, frameType } from '../../lib/format/frame-types.ts'
import { imageName, snapshotId } from '../../lib/format/names.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { formatSize } from '../../lib/size.ts'
import { startCache } from '../support/daemons.ts'
import { temporary } from '../support/run.ts'
import { type Status, untilSettled, watched } from '../support/watched.ts'
import { crowd, leaveAtLast, type Taken, take } from '../support/wire-peer.ts'

const test = suite('scripts/hostile-memory')

const MIB = 2 ** 20
const LIMIT = 64 * MIB
/** A quarter of it. */
const FOR_PEERS = 16 * MIB
/** New objects fill up to 141 MiB with Node.js 24.22, and 49 with 20.20, before V8 collects them. */
const NEWER_HEAP = Number(process.versions.node.split('.')[0]) >= 24 ? 96 * MIB : 0
/** What else a cache may take: itself, and what it is about to throw away. */
const BESIDE = 200 * MIB + NEWER_HEAP
const COUNT = 250
const SETTLE_MS = 60_000
/** What it had at its start, and a tenth. */
const SETTLED = 1.1
/** A status line has three digits. */
const ROUNDED = 1.01

const quiet = ({ links, silent, peers, parked }: Status): boolean => links + silent + peers + parked === 0

const preamble = encodePreamble()
const zeros = Buffer.alloc(9_502_000)
const words = (...frames: Frame[]): Buffer => Buffer.concat([preamble, ...frames.map(encodeFrame)])
const token = (): Buffer => randomBytes(16)

/** A frame that is announced, with a payload of that length. */
function announced(type: FrameName, length: number): Buffer {
  const header = Buffer.alloc(HEADER_BYTES)
  header.writeUInt8(frameType[type], 0)
  header.writeUInt32LE(length, 16)
  header.writeUInt32LE(crc32(header.subarray(0, 20)), 20)
  return header
}

const LONGEST_END = 9_502_736
const endless = (): Uint8Array[] => [announced('snapshotEnd', LONGEST_END), zeros]
const snapshot = (name: string, k: number): Frame => ({ type: 'snapshot', id: snapshotId(`${name}-${k}`) })
const image = (channel: number): Frame => ({ type: 'image', channel, name: imageName(`core-${channel}.img`) })

/** Many small images, whose acks nobody takes. */
const IMAGES = 12_000
const smallImages = Buffer.concat(
  Array.from({ length: IMAGES }, (_, at) => [
    encodeFrame(image(at + 1)),
    encodeFrame({ type: 'imageEnd', channel: at + 1, size: 0, digest: 0xef46db3751d8e999n }),
  ]).flat(),
)

interface Attack {
  what: string
  /** Bytes that the status must show, at least. */
  shown?: number
  say: (k: number) => Uint8Array[]
}

const attacks: Record<string, Attack> = {
  nosnap: { what: 'an end without a beginning', say: () => [preamble, ...endless()] },
  getsnap: {
    what: 'an end after a hand-over',
    say: () => [words({ type: 'handOver', until: 'running' }), ...endless()],
  },
  snap: { what: 'an end that is longer than its snapshot', say: (k) => [words(snapshot('m', k)), ...endless()] },
  handover: {
    what: 'the same in a conversation that outlives its link',
    say: (k) => [words(snapshot('h', k), { type: 'handOver', until: 'sealed', token: token() }), ...endless()],
  },
  layer: {
    what: 'the same in a round',
    say: (k) => [words(snapshot('l', k), { type: 'layer', under: 0, last: false, token: token() }), ...endless()],
  },
  get: {
    what: 'clients that wait for what never comes',
    say: (k) => [words({ type: 'get', id: snapshotId(`n-${k}`), timeoutMs: 2 ** 31 - 1 })],
  },
  join: {
    what: 'connections that join, and say more before they are all here',
    say: (k) => [
      words({ type: 'join', token: Buffer.alloc(16, k >> 4), index: k % 16, count: 16 }),
      zeros.subarray(0, MIB),
    ],
  },
  joined: {
    what: 'groups of connections whose chunks are never what comes next',
    say: (k) => [
      words({ type: 'join', token: Buffer.alloc(16, k >> 1), index: k % 2, count: 2 }),
      zeros.subarray(0, MIB),
    ],
  },
  preamble: {
    what: 'a first word that stops short',
    say: () => [preamble, announced('get', 72), zeros.subarray(0, 70)],
  },
  resume: { what: 'a long first word', say: () => [preamble, announced('resume', LONGEST_END), zeros] },
  packed: {
    what: 'compressed bytes that stop short',
    shown: 4 * MIB,
    say: (k) => [
      words(snapshot('p', k), image(1), {
        type: 'packed',
        channel: 1,
        offset: 0,
        codec: 'lz4',
        raw: MIB,
        length: MIB,
      }),
      zeros.subarray(0, MIB - 1),
    ],
  },
  unacknowledged: {
    what: 'acks that nobody takes or acknowledges',
    say: (k) => [words(snapshot('u', k), { type: 'handOver', until: 'sealed', token: token() }), smallImages],
  },
  unread: {
    what: 'a snapshot that many ask for and nobody reads',
    shown: 4 * MIB,
    say: () => [words({ type: 'get', id: undefined, timeoutMs: 0 })],
  },
  recall: {
    what: 'offers that nobody reads',
    say: (k) => [words(snapshot('r', k), { type: 'recall', offset: 0 })],
  },
}

/** What both caches have, so that some of it can be asked for. */
const stored = { 'pages-1.img': randomBytes(24 * MIB), 'inventory.img': Buffer.from('abc') }

/** What a cache keeps of pages that it has offered, in three digits. */
const OFFERED_BYTES = MIB / 2

/** A cache for some of them, one after the other. */
for (const [names, ...options] of [
  [['nosnap', 'getsnap', 'snap', 'handover', 'layer']],
  [['get', 'join', 'joined', 'preamble', 'resume']],
  [['packed', 'unacknowledged', 'unread']],
  [['recall', 'packed'], '--dedup'],
] as const) {
  test(`${COUNT} peers of each kind: ${names.join(', ')}`, async () => {
    const { path, remove } = temporary()
    const { cache, port } = await startCache(join(path, 'cache'), ['--max-memory', '64M', ...options])
    const look = watched(cache)
    let all = crowd({ port })
    try {
      await leaveAtLast({ port }, 'stored', stored)
      assert.is(((await take({ port }, undefined)) as Taken).id, 'stored')
      const usual = await untilSettled(look.status, quiet)
      const before = { rss: look.rss(), descriptors: look.descriptors() }
      for (const name of names) {
        const { what, say, shown = 0 } = attacks[name] as Attack
        look.forget()
        all = crowd({ port })
        let most = 0
        for (let k = 0; k < COUNT; k++) {
          all.join(say(k))
          if (k % 50 !== 49) continue
          await setTimeout(300)
          const { peers, memory } = await look.status()
          most = Math.max(most, peers)
          assert.ok(peers <= FOR_PEERS * ROUNDED, `${what}: ${formatSize(peers)} held for peers`)
          assert.ok(memory <= LIMIT * ROUNDED, `${what}: ${formatSize(memory)} of memory`)
        }
        await setTimeout(1000)
        const peak = look.peak()
        all.disperse()
        const { memory, ...after } = await untilSettled(look.status, quiet)
        assert.equal({ ...after, memory: usual.memory }, usual, what)
        const offered = options.length > 0 ? OFFERED_BYTES : 0
        assert.ok(memory >= usual.memory && memory <= usual.memory + offered, `${what}: ${memory} bytes are kept`)
        console.log(`figures: ${name}: RSS at most ${formatSize(peak)}, held for peers at most ${formatSize(most)}`)
        assert.ok(most >= shown, `${what}: only ${formatSize(most)} is shown as held for peers`)
        assert.ok(peak <= LIMIT + BESIDE, `${what}: ${formatSize(peak)} resident`)
      }
      const seen = () => ({ rss: look.rss(), descriptors: look.descriptors() })
      const after = await untilSettled(
        seen,
        ({ rss, descriptors }) => rss <= before.rss * SETTLED && descriptors <= before.descriptors,
        SETTLE_MS,
      )
      console.log(`figures: RSS ${formatSize(before.rss)} before, ${formatSize(after.rss)} afterwards`)
      assert.is(after.descriptors, before.descriptors)
      const { images } = (await take({ port }, 'stored')) as Taken
      for (const [name, bytes] of Object.entries(stored)) assert.ok(images.get(name)?.equals(bytes), name)
    } finally {
      all.disperse()
      await cache.stop()
      remove()
    }
    assert.not.match(cache.stderr(), /this is a bug|Warning/)
  })
}

test.run()
