/**
 * A CRIU that does what it is told: the real socket, the real protobuf, the real SCM_RIGHTS, for what the real one
 * cannot be made to do.
 */
import { join } from 'node:path'
import { CAPTURE_SOCKET } from '../../lib/criu/capture.ts'
import { Fault } from '../../lib/fault.ts'
import { decodeOrFault, imgStreamerReplyEntry } from '../../lib/format/criu-messages.ts'
import { encodeRequest, LENGTH_BYTES } from '../../lib/format/streamer.ts'
import { check, type Fd, makePipe } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome, writeAll } from '../../lib/kernel/transfer.ts'
import { connectUnix } from '../../lib/kernel/unix.ts'
import { run } from './run.ts'

/** For every sendmsg(2): an address keeps nothing alive, so what it points to must live for ever. */
const block = Buffer.alloc(2 ** 16)
const [header, iovec, control, data] = [
  block.subarray(0, 56),
  block.subarray(56, 72),
  block.subarray(72, 4096),
  block.subarray(4096),
]

/** Sends `bytes` with descriptors attached. */
export function sendWithFds(socket: Fd, bytes: Uint8Array, fds: readonly number[]): void {
  data.set(bytes)
  iovec.writeBigUInt64LE(libc.address(data), 0)
  iovec.writeBigUInt64LE(BigInt(bytes.length), 8)
  control.writeBigUInt64LE(BigInt(16 + 4 * fds.length), 0)
  control.writeInt32LE(libc.SOL_SOCKET, 8)
  control.writeInt32LE(libc.SCM_RIGHTS, 12)
  fds.forEach((fd, index) => {
    control.writeInt32LE(fd, 16 + 4 * index)
  })
  header.fill(0)
  header.writeBigUInt64LE(libc.address(iovec), 16)
  header.writeBigUInt64LE(1n, 24)
  if (fds.length > 0) {
    header.writeBigUInt64LE(libc.address(control), 32)
    header.writeBigUInt64LE(BigInt(16 + Math.ceil(fds.length / 2) * 8), 40)
  }
  for (;;) {
    const sent = libc.sendmsg(socket, header, libc.MSG_NOSIGNAL)
    if (sent !== -libc.EAGAIN) return void check(sent, 'sendmsg')
    // CRIU's socket blocks, and CRIU with it.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1)
  }
}

export interface FakeDump {
  socket: Fd
  /** Asks for `name` and hands over a pipe; returns its write end. */
  open(name: string): Fd
  /** Opens, writes and closes an image. */
  image(name: string, bytes: Uint8Array): Promise<void>
  /** Sends raw bytes on the socket. */
  raw(bytes: Uint8Array, fds?: readonly number[]): void
  close(): void
}

/** Connects to a capture socket, as `criu dump --stream` does. */
export function fakeDump(path: string): FakeDump {
  const socket = connectUnix(path)
  const raw = (bytes: Uint8Array, fds: readonly number[] = []): void => sendWithFds(socket, bytes, fds)
  const open = (name: string): Fd => {
    const [out, into] = makePipe()
    try {
      raw(encodeRequest(name))
      raw(Buffer.alloc(1), [out])
    } catch (error) {
      // Who has given up meanwhile takes no pipe: writing into it fails, as for a real one.
      if (!(error instanceof Fault && error.code === 'LINK')) throw error
    }
    closeFd(out)
    return into
  }
  return {
    socket,
    open,
    raw,
    async image(name, bytes) {
      const pipe = open(name)
      try {
        await writeAll(pipe, bytes)
      } finally {
        closeFd(pipe)
      }
    },
    close: () => closeFd(socket),
  }
}

/** Dumps these images at once, then inventory.img, and leaves. */
export async function dumpAll(dump: FakeDump, images: Record<string, Buffer>): Promise<void> {
  await Promise.all(Object.entries(images).map(([name, bytes]) => dump.image(name, bytes)))
  await dump.image('inventory.img', Buffer.from('inventory'))
  dump.close()
}

export interface FakeRestore {
  socket: Fd
  /** Asks for `name`; whether it exists. */
  ask(name: string): Promise<boolean>
  /** Hands over a pipe for the image asked for; returns its read end. */
  pipe(): Fd
  /** The bytes of `name`, or undefined if it does not exist. */
  image(name: string): Promise<Buffer | undefined>
  raw(bytes: Uint8Array, fds?: readonly number[]): void
  close(): void
}

/** Connects to a serve socket, as `criu restore --stream` does. */
export function fakeRestore(path: string): FakeRestore {
  const socket = connectUnix(path)
  const raw = (bytes: Uint8Array, fds: readonly number[] = []): void => sendWithFds(socket, bytes, fds)
  const ask = async (name: string): Promise<boolean> => {
    raw(encodeRequest(name))
    return decodeReply(await readReply(socket))
  }
  const pipe = (): Fd => {
    const [out, into] = makePipe()
    raw(Buffer.alloc(1), [into])
    closeFd(into)
    return out
  }
  return {
    socket,
    ask,
    pipe,
    raw,
    async image(name) {
      if (!(await ask(name))) return undefined
      const out = pipe()
      const bytes = await readToEnd(out)
      closeFd(out)
      return bytes
    },
    close: () => closeFd(socket),
  }
}

async function readReply(socket: Fd): Promise<Buffer> {
  const length = Buffer.alloc(LENGTH_BYTES)
  if ((await readSome(socket, length)) !== LENGTH_BYTES) throw new Error('the socket was closed instead of a reply')
  const body = Buffer.alloc(length.readUInt32LE(0))
  await readSome(socket, body)
  return body
}

/** Everything that comes out of `fd` until its end. */
export async function readToEnd(fd: Fd): Promise<Buffer> {
  const chunks: Buffer[] = []
  for (;;) {
    const chunk = Buffer.alloc(2 ** 16)
    const got = await readSome(fd, chunk)
    if (got === 0) return Buffer.concat(chunks)
    chunks.push(chunk.subarray(0, got))
  }
}

/**
 * A criu whose command line says that it dumps what changed since the dump in `before`. It says one word, and waits to
 * be left.
 */
export async function incrementalCriu(directory: string, before: string): Promise<void> {
  const connects =
    'use IO::Socket::UNIX; $s = IO::Socket::UNIX->new(shift); syswrite $s, "\\r\\0\\0\\0"; sysread $s, $x, 1'
  const words = ['dump', '--stream', '-t', '7', '-D', directory, '--track-mem', '--prev-images-dir', before]
  await run('perl', ['-e', connects, join(directory, CAPTURE_SOCKET), ...words])
}

/** Whether the file exists, by an `img_streamer_reply_entry`. Throws `CRIU_PROTOCOL`. */
export function decodeReply(body: Uint8Array): boolean {
  const { exists } = decodeOrFault('CRIU_PROTOCOL', 'a reply that is not protobuf', imgStreamerReplyEntry, body)
  if (exists === undefined) throw new Fault('CRIU_PROTOCOL', 'a reply of another kind')
  return exists
}
