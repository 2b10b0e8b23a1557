/** Which protocol proxy and cache speak between them, and what does not go with that of `criu --remote`. */
import type { ValuesOf } from './common-options.ts'
import type { credentialOptions } from './credential-options.ts'
import { noneBeside, oneOf } from './parse.ts'

export const wireOption = { wire: { type: 'string', default: 'ferry' } } as const

export const wireHelp = `      --wire WHAT      the protocol of both ends: ${wireOption.wire.default} (the default);
                       criu-remote, of criu --remote, acknowledges and verifies nothing`

const wires = ['ferry', 'criu-remote'] as const

type Values = ValuesOf<typeof wireOption> & Pick<ValuesOf<typeof credentialOptions>, 'tls' | 'key-file'>

/** Whether it is the wire of `criu --remote`. Throws `USAGE` where one of `others` is given with it, or encryption. */
export function isCriuRemote(values: Values, others: Record<string, unknown>): boolean {
  const remote = oneOf('--wire', values.wire, wires) === 'criu-remote'
  noneBeside('--wire criu-remote', remote, { ...others, '--tls': values.tls, '--key-file': values['key-file'] })
  return remote
}
