// Where in a section a piece of code is: the declarations by name, as excerpts of lessons name them.
import type { Node } from "oxc-parser";
import { lineAt, parse } from "./code.ts";

/** Lines of a file, counted from 0; `end` is the number behind the last one. */
export interface Range {
  start: number;
  end: number;
}

/** `callModel`, `Inbox`, `Inbox.add`, `Session.#replay`, `HANDLERS.bash`, `command("new")`. */
export type Places = Map<string, Range>;

/** The name of a key in a class, an interface or an object; "" for a computed one. */
function keyName(key: Node): string {
  if (key.type === "Identifier") return key.name;
  if (key.type === "PrivateIdentifier") return `#${key.name}`;
  return key.type === "Literal" ? String(key.value) : "";
}

/** The members that can be named: those of a class or an interface, or of an object literal. */
function membersOf(node: Node | null | undefined): [name: string, member: Node][] {
  if (!node) return [];
  if (node.type === "ClassDeclaration" || node.type === "TSInterfaceDeclaration") {
    return node.body.body.flatMap((member): [string, Node][] =>
      "key" in member ? [[keyName(member.key), member]] : [],
    );
  }
  if (node.type !== "ObjectExpression") return [];
  return node.properties.flatMap((property): [string, Node][] =>
    property.type === "Property" ? [[keyName(property.key), property]] : [],
  );
}

/** What a top-level statement declares, with the node that has the members. */
function declared(statement: Node): [name: string, owner: Node | null][] {
  if (statement.type === "ExportNamedDeclaration") {
    return statement.declaration ? declared(statement.declaration) : [];
  }
  if (statement.type === "VariableDeclaration") {
    return statement.declarations.flatMap(({ id, init }): [string, Node | null][] =>
      id.type === "Identifier" ? [[id.name, init]] : [],
    );
  }
  if (statement.type === "ExpressionStatement" && statement.expression.type === "CallExpression") {
    const { callee, arguments: given } = statement.expression;
    const [first, second] = given;
    const isNamed = callee.type === "Identifier" && first?.type === "Literal";
    if (isNamed) return [[`${callee.name}("${first.value}")`, null]];
    const isAdded = callee.type === "MemberExpression" && first?.type === "Identifier";
    return isAdded ? [[first.name, second ?? null]] : []; // Object.assign(HANDLERS, { … })
  }
  return "id" in statement && statement.id && "name" in statement.id
    ? [[String(statement.id.name), statement]]
    : [];
}

/** The places of a file. Of an interface that is declared again, the last declaration. */
export function placesOf(source: string, file: string): Places {
  const places: Places = new Map();
  const add = (name: string, node: Node) => {
    const start = lineAt(source, node.start) - 1;
    places.set(name, { start, end: lineAt(source, node.end) });
  };
  for (const statement of parse(source, file).program.body) {
    for (const [name, owner] of declared(statement)) {
      add(name, statement);
      for (const [key, member] of membersOf(owner)) if (key) add(`${name}.${key}`, member);
    }
  }
  return places;
}

/** What the first line of an excerpt says: `// in Inbox.add`, `// s02`, `// s02 · in safePath`. */
export function readPlace(line = ""): { section?: string; name?: string } | undefined {
  const [all, section, name] = /^\/\/ (?:(s\d\d)(?: · (?=in )|$))?(?:in (\S+))?$/.exec(line) ?? [];
  if (all === undefined || (!section && !name)) return undefined;
  return { section, name };
}
