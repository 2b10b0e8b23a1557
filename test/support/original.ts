/**
 * The image-proxy and the image-cache of `criu --remote` as far as TCP goes, written from their protocol: there are no
 * such programs to run. The proxy says what it is told, also what is wrong; the cache reads as the last version did,
 * with one read for a length and one for an entry.
 */
import { once } from 'node:events'
import net from 'node:net'
import { decode, encode, encodeIds, openMode } from '../../lib/criu-remote/messages.ts'
import { remoteImageEntry } from '../../lib/format/criu-messages.ts'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { readSome } from '../../lib/kernel/transfer.ts'
import { takeFd } from '../../lib/stream/endpoint.ts'

export interface OriginalProxy {
  raw(bytes: Uint8Array): void
  /** An entry and its bytes; `mode`: proxies of 2017 say `O_APPEND` of every image. */
  image(snapshot: string, name: string, bytes: Uint8Array, mode?: number): void
  /** A dump begins; the list of snapshots grows. */
  push(snapshot: string): void
  /** Ends the stream, and waits until the cache has closed it. */
  end(): Promise<void>
}

export async function originalProxy(port: string, place = ''): Promise<OriginalProxy> {
  const socket = net.connect({ host: '127.0.0.1', port: Number(port), noDelay: true })
  await once(socket, 'connect')
  socket.on('error', () => {})
  socket.resume()
  const closed = new Promise((resolve) => socket.once('close', resolve))
  let list = 0
  const raw = (bytes: Uint8Array): void => void socket.write(bytes)
  return {
    raw,
    image(snapshot, name, bytes, mode = openMode.write) {
      raw(encode(remoteImageEntry, { name, snapshot_id: snapshot, open_mode: mode, size: bytes.length }))
      raw(bytes)
    },
    push(snapshot) {
      const body = encodeIds([snapshot])
      list += body.length
      raw(encode(remoteImageEntry, { name: 'parent', snapshot_id: place, open_mode: openMode.append, size: list }))
      raw(body)
    },
    async end() {
      socket.end()
      await closed
    },
  }
}

export interface Received {
  /** By `SNAPSHOT NAME`, in the order in which they came. */
  images: Map<string, Buffer>
  /** What the originals cannot take. */
  flaw: string | undefined
}

export interface OriginalCache {
  port: string
  /** What the one connection brought, when it has ended. */
  received: Promise<Received>
  close(): void
}

/** Takes one connection. `forgets`: what is added takes the place of what there is, as with those from May 2018 on. */
export async function originalCache(forgets = false): Promise<OriginalCache> {
  const server = net.createServer({ pauseOnConnect: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const received = once(server, 'connection').then(async ([socket]) => {
    server.close()
    const fd = takeFd(socket as net.Socket)
    try {
      return await receive(fd, forgets)
    } finally {
      closeFd(fd)
    }
  })
  return { port: String((server.address() as net.AddressInfo).port), received, close: () => void server.close() }
}

async function receive(fd: Fd, forgets: boolean): Promise<Received> {
  const images = new Map<string, Buffer>()
  for (;;) {
    const length = Buffer.alloc(4)
    const got = await readSome(fd, length)
    if (got === 0) return { images, flaw: undefined }
    if (got < 4) return { images, flaw: 'a length in two pieces' }
    const body = Buffer.alloc(length.readUInt32LE())
    // No second try: what is not there yet is missing.
    if ((await readSome(fd, body)) < body.length) return { images, flaw: 'an entry in two pieces' }
    const { name, snapshot_id: snapshot, open_mode: mode, size } = decode(remoteImageEntry, body)
    const key = `${snapshot} ${name}`
    if (size === 0) return { images, flaw: `${key} has no bytes: all that follows is taken for it` }
    const keeps = (mode === openMode.append) !== forgets
    const before = (keeps && images.get(key)) || Buffer.alloc(0)
    const parts = [before]
    if (size < before.length) return { images, flaw: `${key} becomes shorter` }
    for (let left = size - before.length; left > 0; ) {
      const part = Buffer.alloc(Math.min(left, 4096))
      const came = await readSome(fd, part)
      // Taken for the whole.
      if (came === 0) break
      parts.push(part.subarray(0, came))
      left -= came
    }
    images.set(key, Buffer.concat(parts))
  }
}
