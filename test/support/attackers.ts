/**
 * Peers of a cache and of its proxies that mean harm, or are broken: many of each kind, who come again and again, each
 * at a bounded rate. All end when they are told to, or by themselves when their time is over.
 */
import { randomBytes } from 'node:crypto'
import { once, setMaxListeners } from 'node:events'
import net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import tls from 'node:tls'
import { type Frame, MOST_DATA } from '../../lib/format/frame.ts'
import { type SnapshotId, snapshotId } from '../../lib/format/names.ts'
import { within } from '../expect.ts'
import { bytesOf, data, end, entry, stream } from '../stream/snapshots.ts'
import { start } from './run.ts'

export interface Targets {
  /** The cache's. */
  port: string
  /** A snapshot that the cache has. */
  bait: SnapshotId
  /** The sockets of the proxies for criu, and their ports for pages. */
  proxies: { socket: string; pagePort: string }[]
}

export interface Attack {
  /** How many kinds there are at the cache, and at one proxy. */
  readonly kinds: { cache: number; proxy: number }
  /**
   * Ends them. Returns how many connections each kind has made, and how many of those of another user were told that
   * they may not speak.
   */
  stop(): Promise<{ made: Map<string, number>; toldOff: number }>
}

interface Kind {
  name: string
  /** At a time. */
  many: number
  /** From the end of one connection to the next. */
  pauseMs: number
  at: net.NetConnectOpts
  /**
   * What it does on one connection, the `turn`th of its kind. It is over when this resolves, or when the other end has
   * closed.
   */
  act(socket: net.Socket, turn: number): Promise<void>
}

/** The same numbers, between 0 and 1, in every run (mulberry32). */
function numbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), state | 1)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

const pages = bytesOf('pages', 40_000)
const inventory = bytesOf('inventory', 500)

/** A stream that is in order. With a token it is a hand-over whose sender may come back. */
export function snapshotStream(id: SnapshotId, token?: Buffer, first = pages): Buffer {
  const handOver: Frame[] = token === undefined ? [] : [{ type: 'handOver', until: 'sealed', token }]
  const images = [entry('pages-1.img', first), entry('inventory.img', inventory)] as const
  const [{ digest }, { digest: last }] = images
  const pieces = Array.from({ length: Math.ceil(first.length / MOST_DATA) }, (_, at) =>
    data(1, at * MOST_DATA, first.subarray(at * MOST_DATA, (at + 1) * MOST_DATA)),
  )
  return stream(
    ...[{ type: 'snapshot', id } as const, ...handOver],
    ...[{ type: 'image', channel: 1, name: images[0].name } as const, ...pieces],
    { type: 'imageEnd', channel: 1, size: first.length, digest },
    ...[{ type: 'image', channel: 2, name: images[1].name } as const, data(2, 0, inventory)],
    ...[{ type: 'imageEnd', channel: 2, size: inventory.length, digest: last } as const, end(...images)],
  )
}

/** Sends all of it to the cache, and leaves. */
export async function sendAll(port: string, bytes: Buffer): Promise<void> {
  const socket = net.connect(Number(port), '127.0.0.1').resume()
  socket.end(bytes)
  await within(once(socket, 'close'), 'the end of a connection')
}

/** The begin of such a stream, in the middle of its first image. */
const begun = (id: SnapshotId, token?: Buffer): Buffer => snapshotStream(id, token).subarray(0, 20_000)

/** Bits flipped, an end cut off, or a part that comes twice: never what it was. */
function damaged(whole: Buffer, random: () => number): Buffer {
  const below = (limit: number): number => Math.floor(random() * limit)
  const way = below(3)
  if (way === 0) return whole.subarray(0, below(whole.length))
  if (way === 1) {
    const flipped = Buffer.from(whole)
    const at = below(flipped.length)
    flipped.writeUInt8(flipped.readUInt8(at) ^ (1 << below(8)), at)
    return flipped
  }
  const [from, length] = [below(whole.length - 1), 1 + below(2000)]
  const middle = below(whole.length - 1)
  return Buffer.concat([whole.subarray(0, middle), whole.subarray(from, from + length), whole.subarray(middle)])
}

/** Until the other end closes. */
const forEver = new Promise<void>(() => {})
const pause = (ms: number): Promise<void> => setTimeout(ms, undefined, { ref: false })

function kindsAtCache({ port, bait }: Targets): Kind[] {
  const at = { host: '127.0.0.1', port: Number(port) }
  const random = numbers(13)
  const fresh = (kind: string, turn: number): SnapshotId => snapshotId(`${kind}-${turn}`)
  return [
    // With those that drip more than have a place.
    {
      ...{ name: 'silent', many: 220, pauseMs: 1000, at },
      act: () => forEver,
    },
    {
      ...{ name: 'dripping', many: 50, pauseMs: 1000, at },
      async act(socket, turn) {
        // The faster ones get as far as their first image.
        for (const byte of snapshotStream(fresh('drip', turn))) {
          if (socket.destroyed) return
          socket.write(Buffer.of(byte))
          await pause(turn % 2 === 0 ? 250 : 1000)
        }
      },
    },
    {
      ...{ name: 'begun', many: 20, pauseMs: 1000, at },
      act(socket, turn) {
        socket.write(begun(fresh('begun', turn)))
        return forEver
      },
    },
    {
      ...{ name: 'with a token, never back', many: 5, pauseMs: 2000, at },
      async act(socket, turn) {
        socket.write(begun(fresh('token', turn), randomBytes(16)))
        await pause(200)
      },
    },
    {
      ...{ name: 'mutated', many: 4, pauseMs: 200, at },
      act(socket, turn) {
        const token = turn % 2 === 0 ? undefined : randomBytes(16)
        socket.end(damaged(snapshotStream(fresh('mutated', turn), token), random))
        return pause(10_000)
      },
    },
    {
      ...{ name: 'getting, never reading', many: 20, pauseMs: 1000, at },
      act(socket) {
        socket.pause()
        socket.write(stream({ type: 'get', id: bait, timeoutMs: 1000 }))
        return pause(30_000)
      },
    },
    {
      ...{ name: 'TLS', many: 2, pauseMs: 500, at },
      act(socket) {
        tls.connect({ socket, rejectUnauthorized: false }).on('error', () => {})
        return pause(10_000)
      },
    },
  ]
}

function kindsAtProxy(socket: string): Kind[] {
  const at = { path: socket }
  return [
    {
      ...{ name: 'a silent criu', many: 10, pauseMs: 1000, at },
      act: () => pause(15_000),
    },
    {
      ...{ name: 'half a request', many: 4, pauseMs: 2000, at },
      act(socket) {
        socket.write(Buffer.from([15, 0, 0, 0, 10, 13, 112]))
        return pause(8000)
      },
    },
  ]
}

/** At the cache, and at the port for pages of each proxy. */
const OTHER_USER = 'of another user'
/**
 * Five a second to the first port, the cache's; one to each of the others. Says how many came and how many were told
 * off at the first.
 */
const otherUser = `
  use strict; use IO::Socket::INET; use IO::Select; use Time::HiRes qw(time sleep);
  my ($seconds, @ports) = @ARGV; my ($made, $told) = (0, 0); my $end = time + $seconds;
  alarm($seconds + 30); $SIG{TERM} = sub { $end = 0 };
  for (my $turn = 0; time < $end; $turn++) {
    for my $port (@ports) {
      my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port", Timeout => 10) or next;
      $made++; my $heard = '';
      while (IO::Select->new($socket)->can_read(10)) { sysread($socket, $heard, 4096, length $heard) or last }
      $told++ if $heard =~ /user 65534 of this host may not speak here/;
    }
    sleep(0.2);
  }
  print "$made $told";
`

/** They end after `limitMs` if they are not stopped before. */
export function attack(targets: Targets, limitMs: number): Attack {
  const over = new AbortController()
  const { signal } = over
  setMaxListeners(0, signal)
  const timer = globalThis.setTimeout(() => over.abort(), limitMs)
  const made = new Map<string, number>()
  const ended = once(signal, 'abort')

  async function connection(kind: Kind): Promise<void> {
    const turn = made.get(kind.name) ?? 0
    made.set(kind.name, turn + 1)
    const socket = net.connect(kind.at)
    const closed = new Promise((resolve) => void socket.once('close', resolve))
    socket.on('error', () => {}).resume()
    const connected = new Promise<true>((resolve) => void socket.once('connect', () => resolve(true)))
    const there = await Promise.race([connected, closed, ended])
    if (there === true) await Promise.race([kind.act(socket, turn), closed, ended])
    socket.destroy()
    await closed
  }

  async function comesAgain(kind: Kind, number: number): Promise<void> {
    // Not all at once.
    await setTimeout((kind.pauseMs * number) / kind.many, undefined, { signal }).catch(() => {})
    while (!signal.aborted) {
      await connection(kind)
      await setTimeout(kind.pauseMs, undefined, { signal }).catch(() => {})
    }
  }

  const [atCache, atProxies] = [kindsAtCache(targets), targets.proxies.map(({ socket }) => kindsAtProxy(socket))]
  const peers = [...atCache, ...atProxies.flat()].flatMap((kind) =>
    Array.from({ length: kind.many }, (_, number) => comesAgain(kind, number)),
  )
  const ports = [targets.port, ...targets.proxies.map(({ pagePort }) => pagePort)]
  const as = ['--reuid', '65534', '--regid', '65534', '--clear-groups', '--pdeathsig', 'KILL']
  const others = start('setpriv', [...as, 'perl', '-e', otherUser, String(limitMs / 1000), ...ports], {
    limitMs: limitMs + 60_000,
  })
  return {
    kinds: { cache: atCache.length + 1, proxy: (atProxies[0]?.length ?? 0) + 1 },
    async stop() {
      clearTimeout(timer)
      over.abort()
      const [{ stdout, stderr }] = await Promise.all([others.stop(), ...peers])
      const [, connections, toldOff] = /^(\d+) (\d+)$/.exec(stdout.toString()) ?? []
      if (connections === undefined) throw new Error(`the other user failed: ${stderr}`)
      made.set(OTHER_USER, Number(connections))
      return { made, toldOff: Number(toldOff) }
    },
  }
}
