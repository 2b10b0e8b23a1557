import { once } from 'node:events'
import net from 'node:net'
import { networkInterfaces } from 'node:os'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { admissionOf } from '../../lib/role/admission.ts'

const test = suite('role/admission')

const theirs = { remoteAddress: '192.0.2.1', remotePort: 40000 }
const onLoopback = { localAddress: '127.0.0.1', localPort: 9 }
const elsewhere = { localAddress: '192.0.2.7', localPort: 9 }

test('whoever is not seen to be a user who may speak may not, from whatever address he connects', () => {
  for (const ours of [onLoopback, elsewhere]) {
    assert.is(admissionOf({ ...theirs, ...ours }, []).refusal?.code, 'REFUSED')
  }
})

test('where everybody may speak a share is that of an address, and on loopback that of a user', () => {
  assert.equal(admissionOf({ ...theirs, ...elsewhere }, undefined), { source: '192.0.2.1', refusal: undefined })
  assert.is(admissionOf({ ...theirs, ...onLoopback }, undefined).source, 'users who have gone')
  const from = (remoteAddress: string): string =>
    admissionOf({ ...theirs, ...elsewhere, remoteAddress }, undefined).source
  assert.is(from('2001:db8::1'), '2001:db8:0:0::/64')
  assert.is(from('2001:db8:0:0:1:2:3:4'), '2001:db8:0:0::/64')
  assert.is(from('::ffff:192.0.2.1'), '::ffff:192.0.2.1')
})

test('our own user may, also from another address of this host', async () => {
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
      const expected = { source: `user ${process.geteuid?.()}`, refusal: undefined }
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
