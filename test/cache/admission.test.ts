import { once } from 'node:events'
import net from 'node:net'
import { networkInterfaces } from 'node:os'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { admissionOf } from '../../lib/cache/admission.ts'
import { isRoot } from '../kernel/fds.ts'

const test = suite('cache/admission')
const NOBODY = 65534

interface Pair {
  client: net.Socket
  socket: net.Socket
}

/** Calls `body` with a connection to `host` that the user `uid` has made, and with the cache's end of it. */
async function connected(host: string, uid: number, body: (pair: Pair) => Promise<void>): Promise<void> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, host)
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const accepted = once(server, 'connection') as Promise<[net.Socket]>
  if (isRoot) process.seteuid?.(uid)
  const client = net.connect({ port, host, allowHalfOpen: true })
  try {
    await once(client, 'connect')
  } finally {
    if (isRoot) process.seteuid?.(0)
  }
  const [socket] = await accepted
  try {
    await body({ client, socket })
  } finally {
    client.destroy()
    socket.destroy()
    server.close()
  }
}

for (const host of ['127.0.0.1', '::1']) {
  test(`over ${host} our own user is admitted, and has a share of its own`, () =>
    connected(host, 0, async ({ socket }) => {
      for (const uids of [[], [NOBODY], undefined]) {
        assert.equal(admissionOf(socket, uids), { origin: `user ${process.geteuid?.()}`, refusal: undefined })
      }
    }))

  test(`over ${host} another user is admitted if it was named, or if everybody is`, async () => {
    if (!isRoot) return void console.log('skipped: another user wants root')
    await connected(host, NOBODY, async ({ socket }) => {
      for (const uids of [[NOBODY], [1, NOBODY], undefined]) {
        assert.equal(admissionOf(socket, uids), { origin: 'user 65534', refusal: undefined })
      }
      for (const uids of [[], [1, 2]]) {
        const { origin, refusal } = admissionOf(socket, uids)
        assert.is(origin, 'user 65534')
        assert.is(refusal?.code, 'REFUSED')
        assert.match(refusal?.message ?? '', 'user 65534 of this host may not speak here without --allow-uid 65534')
        for (const way of ['--allow-uid 65534', '--tls', '--key-file', '--insecure']) {
          assert.match(refusal?.hint ?? '', way)
        }
      }
    })
  })
}

test('a user that cannot be seen is refused, unless everybody is admitted', () =>
  connected('127.0.0.1', 0, async ({ client, socket }) => {
    const { remoteAddress, remotePort, localAddress, localPort } = socket
    const ends = { remoteAddress, remotePort, localAddress, localPort }
    client.destroy()
    await once(client, 'close')
    const { origin, refusal } = admissionOf(ends, [0, NOBODY])
    assert.is(origin, 'users who have gone')
    assert.is(refusal?.code, 'REFUSED')
    assert.is(admissionOf(ends, undefined).refusal, undefined)
  }))

test('where everybody is admitted an address is an origin; of IPv6 its upper half', () => {
  const of = (remoteAddress: string) =>
    admissionOf({ remoteAddress, remotePort: 1, localAddress: '10.0.0.1', localPort: 2 }, undefined)
  for (const [address, origin] of [
    ['10.0.0.7', '10.0.0.7'],
    ['::ffff:10.0.0.7', '::ffff:10.0.0.7'],
    ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
    ['2001:db8:1:2::9', '2001:db8:1:2::/64'],
    ['2001:db8::9', '2001:db8:0:0::/64'],
    ['2001:db8::5:6:7:8', '2001:db8:0:0::/64'],
    ['1::3:4:5:6:7:8', '1:0:3:4::/64'],
    ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ] as const) {
    assert.equal(of(address), { origin, refusal: undefined })
  }
})

const theirs = { remoteAddress: '192.0.2.1', remotePort: 40000 }
const onLoopback = { localAddress: '127.0.0.1', localPort: 9 }
const elsewhere = { localAddress: '192.0.2.7', localPort: 9 }

test('a client that is not seen to be an admitted user is refused, from whatever address it connects', () => {
  for (const ours of [onLoopback, elsewhere]) {
    assert.is(admissionOf({ ...theirs, ...ours }, []).refusal?.code, 'REFUSED')
  }
})

test('our own user is admitted from another address of this host', async () => {
  const own = Object.values(networkInterfaces())
    .flatMap((addresses) => addresses ?? [])
    .find(({ family, internal }) => family === 'IPv4' && !internal)
  const server = net.createServer()
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  try {
    for (const localAddress of ['127.0.0.1', '127.0.0.2', ...(own === undefined ? [] : [own.address])]) {
      const client = net.connect({ port, host: '127.0.0.1', localAddress })
      const [socket] = (await once(server, 'connection')) as [net.Socket]
      const expected = { origin: `user ${process.geteuid?.()}`, refusal: undefined }
      const found = admissionOf(socket, [])
      client.destroy()
      socket.destroy()
      assert.equal(found, expected, localAddress)
    }
  } finally {
    server.close()
  }
})

test.run()
