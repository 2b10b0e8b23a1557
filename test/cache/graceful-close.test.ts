import { once } from 'node:events'
import net from 'node:net'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { refuseSocket } from '../../lib/cache/graceful-close.ts'
import { Fault } from '../../lib/fault.ts'
import { encodePreamble } from '../../lib/format/preamble.ts'
import { frameReader } from '../../lib/stream/frames.ts'
import { duplexLink } from '../../lib/stream/node-link.ts'
import { within } from '../expect.ts'
import { anyFrame } from '../support/any-frame.ts'

const test = suite('cache/graceful-close')

const fault = new Fault('REFUSED', 'you may not', { hint: 'for the one who started this' })

/** A TCP connection: the client's end, and the server's. */
async function connect(): Promise<[client: net.Socket, socket: net.Socket]> {
  const server = net.createServer({ pauseOnConnect: true, allowHalfOpen: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as net.AddressInfo
  const client = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true })
  const [socket] = (await once(server, 'connection')) as [net.Socket]
  server.close()
  return [client, socket]
}

test('a refused client reads the reason and the end, also after it has sent much', async () => {
  const [client, socket] = await connect()
  const written = new Promise<void>((resolve, reject) =>
    client.write(Buffer.concat([encodePreamble(), Buffer.alloc(2 ** 25)]), (error) =>
      error ? reject(error) : resolve(),
    ),
  )
  const over = refuseSocket(socket, fault)
  const reader = frameReader(duplexLink(client, 'cache').inlet)
  assert.equal(await within(reader.expect(anyFrame)), { type: 'hello' })
  assert.equal(await within(reader.expect(anyFrame)), { type: 'refused', code: 'REFUSED', reason: 'you may not' })
  assert.is(await within(reader.next(anyFrame)), undefined)
  await within(written)
  client.end()
  await within(over)
  assert.ok(socket.destroyed)
})

test('a refused client that does not close is closed, and one that has gone is no failure', async () => {
  const [client, socket] = await connect()
  await within(refuseSocket(socket, fault))
  assert.ok(socket.destroyed)
  client.destroy()
  const [gone, other] = await connect()
  gone.resetAndDestroy()
  await within(refuseSocket(other, fault))
  assert.ok(other.destroyed)
})

test.run()
